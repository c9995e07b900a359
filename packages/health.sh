#!/bin/bash
# Whether the server of a container takes requests, with nothing but bash: health.sh [PORT]. The image's HEALTHCHECK.
exec 3<>"/dev/tcp/127.0.0.1/${1:-8080}" && printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3 && grep -q '"ok"' <&3
