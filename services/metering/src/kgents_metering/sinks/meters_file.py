"""The YAML file in which an operator declares meters; what they mean is the model's."""

from __future__ import annotations

from pathlib import Path

import yaml

from kgents_common.errors import ConfigurationError
from kgents_metering.model.meters import Declared, declared


def load_meters(path: Path | None) -> Declared:
    """The meters of the file, and its version.

    Raises:
        ConfigurationError: It is not named, missing, not YAML, or breaks a rule of meters.
    """
    if path is None:
        raise ConfigurationError("no meters file is named", hint="set KGENTS_METERS_FILE")
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigurationError(
            f"the meters file {path} cannot be read: {error.strerror}", hint="set KGENTS_METERS_FILE"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"the meters file {path} is not YAML: {error}") from error
    return declared(document)
