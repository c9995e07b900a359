# What the tests of packages share, beside check.sh: a checkout that has built programs at its root, as packages/install.sh and
# packages/deb.sh want them.
# shellcheck shell=bash disable=SC2034,SC2154

export DPKG_DEB_COMPRESSOR_LEVEL=0 # compressing takes longer than all the rest

# checkout_with FOLDER PROGRAMS: makes it in FOLDER, with the programs of the folder PROGRAMS, and lists them in `names`
checkout_with() {
    local name
    mkdir "$1"
    ln -s "$root"/{dev,web,LICENSE,Makefile} "$1"
    cp -r "$root/packages" "$1"
    names=(infer eval quantize train_distill)
    [ ! -f "$2/serve" ] || names+=(serve)
    for name in "${names[@]}"; do ln "$2/$name" "$1/" 2>/dev/null || cp "$2/$name" "$1/"; done
}
