#!/bin/bash
# The tests of this folder with the SLURM of another Debian release, in a folder of its own. Needs root and debootstrap.
#
#   tests/slurm/other_release.sh trixie       SLURM 24.11; behind the name arguments for pytest
#
# The folder stays for the next time: SLURM_ROOT, by default /var/tmp/indextts-slurm-RELEASE.
set -euo pipefail

release=${1:-trixie}
root=${SLURM_ROOT:-/var/tmp/indextts-slurm-$release}
repository=$(cd "$(dirname "$0")/../.." && pwd)
python=$repository/.venv/bin/python
prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
[ "$prefix" != /usr ] || { echo "the interpreter of the system would hide the programs of $release: use another" >&2; exit 1; }
# What SLURM needs, and the libraries that an interpreter of the host may look for.
packages=slurm-wlm,munge,ca-certificates,procps,libssl3,libffi8,libsqlite3-0,libreadline8,libbz2-1.0,liblzma5,zlib1g,libstdc++6,tzdata,git
case $release in trixie | forky | sid) packages=${packages/libssl3/libssl3t64} packages=${packages/libreadline8/libreadline8t64} ;; esac

[ -x "$root/usr/sbin/slurmctld" ] || debootstrap --variant=minbase --include="$packages" "$release" "$root"

# In a namespace of its own, whose mounts end with it, whatever happens. A mount that was left behind in the folder would
# be followed by whoever removes the folder.
export root repository python prefix
# shellcheck disable=SC2016  # the variables are those of the inner shell
exec unshare --mount --propagation private -- bash -euc '
    for place in /proc /sys /dev "$repository" "$prefix"; do
        mkdir -p "$root$place"
        mount --rbind "$place" "$root$place"
    done
    mount -t tmpfs tmpfs "$root/tmp"
    chroot "$root" slurmctld -V
    exec chroot "$root" env -C "$repository" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        "$python" -m pytest -q -p no:cacheprovider --basetemp /tmp/tests tests/slurm "$@"
' bash "${@:2}"
