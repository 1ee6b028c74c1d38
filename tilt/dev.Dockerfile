# On a service's image: its packages may be written by the process that runs them, which begins anew when they change.
ARG IMAGE
FROM ${IMAGE}
ARG COMMAND
USER 0:0
RUN ["chown", "-R", "10001:10001", "/app/lib/python3.11/site-packages"]
COPY tilt/reload.py /reload.py
USER 10001:10001
ENV RELOADS=${COMMAND}
ENTRYPOINT ["/app/bin/python", "-u", "/reload.py"]
