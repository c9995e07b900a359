#!/usr/bin/env bash
# Makes a Debian package of built programs: deb.sh FOLDER PROGRAM... leaves FOLDER/tikzc_VERSION_ARCHITECTURE.deb.
# The same programs give the same bytes. Needs dpkg-dev; what the programs are linked with becomes what the package depends on.
# $MAINTAINER is who answers for the package, as NAME <ADDRESS>; else the author of the last commit does.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
version=$("./$1" --version | sed 's/.* //') architecture=$(dpkg --print-architecture)
tree=$out/tikzc-tree
maintainer=${MAINTAINER:-$(git log -1 --format='%an <%ae>' 2>/dev/null)} || true
[ -n "$maintainer" ] || { echo "deb.sh: error: say in MAINTAINER who answers for the package, as NAME <ADDRESS>" >&2; exit 1; }
rm -rf "$tree"
umask 022
mkdir -p "$out"
packages/install.sh "$tree/usr" "$@" >"$out/install.log"
mkdir -p "$tree/DEBIAN" "$tree/usr/share/doc/tikzc" "$out/debian"
strip --strip-unneeded "$tree"/usr/lib/tikzc/*
cp LICENSE "$tree/usr/share/doc/tikzc/copyright"
date=$(git log -1 --format=%cD 2>/dev/null || date -R -r Makefile)
export SOURCE_DATE_EPOCH=$(date -d "$date" +%s)
{
    printf 'tikzc (%s) stable; urgency=medium\n\n  * Built from the sources of this version.\n\n' "$version"
    printf ' -- %s  %s\n' "$maintainer" "$date"
} | gzip -9n >"$tree/usr/share/doc/tikzc/changelog.gz"

# dpkg-shlibdeps wants a debian/control to be there.
printf 'Source: tikzc\n\nPackage: tikzc\nArchitecture: any\n' >"$out/debian/control"
depends=$(cd "$out" && dpkg-shlibdeps -O --ignore-missing-info tikzc-tree/usr/lib/tikzc/* 2>shlibdeps.log) ||
    { echo "deb.sh: error: dpkg-shlibdeps failed: $(tail -n 3 "$out/shlibdeps.log")" >&2; exit 1; }
depends=${depends#shlibs:Depends=}
cat >"$tree/DEBIAN/control" <<CONTROL
Package: tikzc
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(find "$tree/usr" -type f -printf '%s\n' | awk '{ n += int(($1 + 1023) / 1024) } END { print n }')
Depends: $depends
Recommends: texlive-latex-extra, texlive-pictures, lmodern, poppler-utils
Suggests: texlive-xetex, texlive-luatex, bash-completion
Section: tex
Priority: optional
Description: turns images into TikZ and LaTeX programs
 Small models, distilled from larger ones, write the program that draws a
 figure. tikzc runs them on any processor, checks what they write with TeX,
 measures them, quantises them and trains new ones.
CONTROL
(cd "$tree" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
find "$tree" -newermt "@$SOURCE_DATE_EPOCH" -print0 | xargs -0r touch -hd "@$SOURCE_DATE_EPOCH"
dpkg-deb --root-owner-group --build "$tree" "$out/tikzc_${version}_$architecture.deb"
rm -rf "$tree" "$out/debian"
