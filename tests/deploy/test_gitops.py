"""The examples for Argo CD and Flux lead to an overlay that exists, in the order that a release needs."""

from __future__ import annotations

from .rendered import K8S, MANIFESTS, OVERLAYS, ROOT, find, overlay, parsed

GITOPS = K8S / "gitops"


def test_argo_cd_s_application_leads_to_the_production_overlay() -> None:
    """Applied server-side: the autoscalers' numbers are not fought over."""
    (application,) = parsed((GITOPS / "argocd-application.yaml").read_text())

    assert application["apiVersion"] == "argoproj.io/v1alpha1"
    assert (ROOT / application["spec"]["source"]["path"] / "kustomization.yaml").is_file()
    assert "ServerSideApply=true" in application["spec"]["syncPolicy"]["syncOptions"]


def test_flux_s_kustomization_leads_there_too() -> None:
    """From the repository that it names."""
    repository, kustomization = parsed((GITOPS / "flux-kustomization.yaml").read_text())

    source = kustomization["spec"]["sourceRef"]
    assert (source["kind"], source["name"]) == (repository["kind"], repository["metadata"]["name"])
    assert (ROOT / kustomization["spec"]["path"] / "kustomization.yaml").is_file()


def test_the_streams_are_applied_after_nats_and_before_the_services() -> None:
    """By waves; the Job may be made anew with each release."""
    objects = overlay("production")
    waves = {
        name: int(found["metadata"].get("annotations", {}).get("argocd.argoproj.io/sync-wave", "0"))
        for name, found in (
            ("nats", find(objects, "StatefulSet", "nats")),
            ("streams", find(objects, "Job", "kgents-streams")),
            ("api", find(objects, "Deployment", "kgent-api")),
        )
    }
    annotations = find(objects, "Job", "kgents-streams")["metadata"]["annotations"]

    assert waves["nats"] < waves["streams"] < waves["api"]
    assert annotations["argocd.argoproj.io/hook-delete-policy"] == "BeforeHookCreation"
    assert annotations["kustomize.toolkit.fluxcd.io/force"] == "enabled"


def test_a_change_of_the_manifests_shows_as_what_is_rendered_differently() -> None:
    """`make render`: nothing between a tree and itself, all of it where there was nothing before."""
    one = OVERLAYS[:1]
    assert MANIFESTS["difference"](ROOT, ROOT, one) == ""
    assert f"+++ b/after/{one[0]}.yaml" in MANIFESTS["difference"](K8S, ROOT, one)
