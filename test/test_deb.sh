#!/bin/bash
# The Debian package in a system that has nothing else: debootstrap makes one, apt installs the package there, and an ordinary
# user turns an image into a program.
#
#   test/test_deb.sh build/BF16           a package of the programs in that folder, in this system's own release
#   FULL=1 test/test_deb.sh build/BF16    and then with the TeX that the package recommends, which draws the program; by hand,
#                                         since it downloads for minutes
#   RELEASE=trixie FULL=1 test/test_deb.sh     another release; the package is built there, from the last commit
#
# Packages come from where this system's apt gets its own; for another distribution, MIRROR names the place and KEYRING the
# file with its keys: RELEASE=noble MIRROR=... KEYRING=... COMPONENTS=main,universe. MAKE_OPTIONS go to its `make deb`.
# Needs root, debootstrap and, for all of it, several minutes and 3 GB.
. "$(dirname "$0")/check.sh"
. "$(dirname "$0")/packages.sh"
cannot() { # WHY
    echo "not tested here: the package in a clean system: $1"
    echo "0 passed, 0 failed"
    exit 0
}
[ "$(id -u)" = 0 ] || cannot "only root can make one"
for command in debootstrap dpkg-shlibdeps unshare; do
    command -v $command >/dev/null || cannot "there is no $command (scripts/deps.sh ci installs debootstrap)"
done
own=$(. /etc/os-release && echo "$VERSION_CODENAME")
release=${RELEASE:-$own}
mirror=${MIRROR:-$(apt-get indextargets --format '$(CODENAME) $(SITE)' 'Created-By: Packages' 2>/dev/null | sed -n "s/^$own //p" | head -n 1)}
[ -n "$mirror" ] || cannot "apt has no source for $own"
eval "$(apt-config shell http_proxy Acquire::http::Proxy)"
export http_proxy MAINTAINER='A. Person <person@debian.org>'
programs=
[ -n "${RELEASE:-}" ] || programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
begin_test deb
TIME_LIMIT=1500
/usr/lib/apt/apt-helper download-file "$mirror/dists/$release/InRelease" "$tmp/InRelease" >"$tmp/out" 2>&1 ||
    cannot "$mirror has no $release, or cannot be reached"

# enter SYSTEM USER COMMAND...: runs it in the system, which is its whole world (chroot would forbid TeX's box its user
# namespace); the mounts end with it
cat >"$tmp/enter" <<'ENTER'
#!/bin/bash
exec unshare --mount --pid --fork --kill-child bash -c '
    set -e
    system=$1 user=$2
    shift 2
    mount --bind "$system" "$system"
    cd "$system"
    mount -t proc proc proc
    mkdir -p outside
    pivot_root . outside
    umount -l outside
    home=$(getent passwd "$user" | cut -d: -f6)
    cd "$home"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$home" http_proxy="$http_proxy" DEBIAN_FRONTEND=noninteractive \
        MAINTAINER="$MAINTAINER" setpriv --reuid="$user" --regid="$user" --clear-groups "$@"' bash "$@"
ENTER
chmod +x "$tmp/enter"
within() { # SYSTEM USER COMMAND...: `run` there
    run "$tmp/enter" "$@"
    shift 2
    last=("$@")
}
as_user() { within "$tmp/system" user "$@"; }
seconds() { # WHAT: how long it took since the last call, for those who ask for it
    [ -z "${VERBOSE:-}" ] || echo "$1: $((SECONDS - since)) s" >&2
    since=$SECONDS
}
since=$SECONDS

# ---- the system, and the package ----

succeeds debootstrap --variant=minbase ${KEYRING:+--keyring="$KEYRING"} ${COMPONENTS:+--components="$COMPONENTS"} "$release" \
    "$tmp/system" "$mirror"
[ $status = 0 ] || { tail -n 3 "$tmp/out"; end_test; }
seconds "debootstrap $release"
if [ -n "$programs" ]; then
    checkout_with "$tmp/root" "$programs"
    succeeds "$tmp/root/packages/deb.sh" "$tmp/build" "${names[@]}"
else
    cp -a "$tmp/system" "$tmp/builder"
    mkdir "$tmp/builder/source"
    git -C "$root" archive HEAD | tar -x -C "$tmp/builder/source"
    within "$tmp/builder" root sh -c 'cd /source && scripts/deps.sh build serve && make -j2 -s '"${MAKE_OPTIONS:-}"' deb'
    check "$release: make deb" [ $status = 0 ]
    mv "$tmp/builder/source/build" "$tmp/build"
    names=(infer eval quantize train_distill serve)
fi
seconds "the package"
mv "$tmp"/build/tikzc_*.deb "$tmp/system/tikzc.deb" || end_test

# ---- without TeX ----

within "$tmp/system" root useradd -m user
within "$tmp/system" root apt-get install -y -q --no-install-recommends /tikzc.deb
check "$release: apt installs the package" [ $status = 0 ]
seconds "apt install"
shipped=/usr/share/tikzc/dev/starter/example.png
for name in "${names[@]}"; do
    as_user tikzc "$name" --version
    check "$release: $name runs" grep -q '^tikz\.c [0-9]' "$tmp/out"
done
as_user tikzc infer $shipped
check "$release: an image becomes its program" same "$tmp/out" "$root/dev/starter/example.tex"
as_user tikzc infer --check $shipped
last=(infer)
check "$release: status 1 without TeX" [ $status = 1 ]
check "$release: one sentence without TeX" one_sentence 'no TeX engine is installed'
as_user tikzc train_distill --steps 1 --batch 2 --student base --eval-batches 1 --out run
check "$release: a student is trained" [ -s "$tmp/system/home/user/run/student.safetensors" ]
seconds "trying it"

# ---- with TeX ----

if [ -n "${FULL:-}" ]; then
    IFS=', ' read -ra recommended <<<"$(dpkg-deb -f "$tmp/system/tikzc.deb" Recommends)"
    within "$tmp/system" root apt-get install -y -q --no-install-recommends "${recommended[@]}"
    check "$release: the recommended packages are there" [ $status = 0 ]
    seconds "apt install ${recommended[*]}"
    as_user tikzc infer --check --pdf x.pdf --png x.png --svg x.svg $shipped
    check "$release: the program is drawn" [ $status = 0 ]
    check "$release: in a whole box" [ "$(grep -c 'incomplete box' "$tmp/err")" = 0 ]
    check "$release: PDF, PNG and SVG" [ "$(cd "$tmp/system/home/user" && head -qc 4 x.pdf x.png x.svg | tr -d '\211\0')" = '%PDFPNG<?xm' ]
    seconds "drawing"
fi

within "$tmp/system" root apt-get purge -y -q tikzc
check "$release: apt removes the package" [ $status = 0 ]
check "$release: nothing is left" [ -z "$(find "$tmp"/system/usr/{bin,lib,share,share/man/man1} -maxdepth 1 -name 'tikzc*')" ]
end_test
