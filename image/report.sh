#!/usr/bin/env bash
# What an image is made of: layers and packages by size, and what should not be in it.
#
#   image/report.sh IMAGE       (default: indextts-job)
#
# ENGINE is docker or podman, whichever is there; RUN_OPTIONS are given to `run`.
set -euo pipefail
image=${1:-indextts-job}
engine=${ENGINE:-$(command -v docker || command -v podman)}
inside() { # shellcheck disable=SC2086  # several options
  "$engine" run --rm ${RUN_OPTIONS:-} --user 0 --entrypoint /bin/sh "$image" -c "$1"
}

echo "== $image: layers, newest first"
"$engine" history --no-trunc --format '{{.Size}}  {{.CreatedBy}}' "$image" |
  sed 's/\/bin\/sh -c //; s/#(nop) *//; s/  */ /g' | cut -c 1-150 | grep -v '^0B\|^0 B' || true

echo "== Python packages, largest first"
# shellcheck disable=SC2016  # expanded in the container
inside 'for path in /opt/venv/lib/python3*/site-packages/*.dist-info /opt/indextts-job/*.dist-info; do
  folder=$(dirname "$path"); name=$(basename "$path" .dist-info)
  bytes=$(cut -d , -f 3 "$path/RECORD" | awk "{ sum += \$1 } END { print sum + 0 }")
  echo "$bytes $name"
done' | sort -rn | awk '{ printf "%9.1f MB  %s\n", $1 / 1e6, $2 }'

echo "== Debian and Ubuntu packages, largest first"
inside "dpkg-query --show --showformat='\${Installed-Size} \${Package} \${Version}\n'" |
  sort -rn | awk '{ printf "%9.1f MB  %s %s\n", $1 / 1e3, $2, $3 }'

echo "== what should not be there (nothing below is good)"
inside 'find / -xdev -type f -perm /6000
find / -xdev \( -type f -o -type d \) -perm -0002 ! -perm -1000
command -v gcc cc pip git curl wget
find /root /home /var/lib/apt/lists /var/cache/apt -xdev -type f
find / -xdev -type f \( -name "id_*" -o -name .netrc -o -name credentials -o -name .env \) ! -path "/usr/share/*"
find / -xdev -type f \( -name "*.pem" -o -name "*.key" \) -exec grep -l "PRIVATE KEY" {} +
true'
