#!/usr/bin/env bash
# Installs what the project needs, on Debian or Ubuntu; says what it installs, and does nothing when all is there.
#
#   scripts/deps.sh build    compiler, oneDNN, stb           what `make` and `make test` need
#   scripts/deps.sh tex      pdflatex, pdftoppm              to see what a program draws
#   scripts/deps.sh python   NumPy, Pillow, PyTorch, venv    to convert data and to rebuild the test fixtures
#   scripts/deps.sh all
set -euo pipefail

packages=()
for group in "${@:-build}"; do
    case $group in
    build) packages+=(build-essential libdnnl-dev libstb-dev) ;;
    tex) packages+=(texlive-latex-base texlive-latex-extra texlive-pictures poppler-utils) ;;
    python) packages+=(python3-numpy python3-pil python3-torch python3-venv) ;;
    all) exec "$0" build tex python ;;
    *)
        echo "deps.sh: unknown group '$group'; expected build, tex, python or all" >&2
        exit 2
        ;;
    esac
done

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "deps.sh: apt-get is not here; install these packages of your system instead: ${missing[*]}" >&2
    exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "deps.sh: not root and no sudo; install as root: ${missing[*]}" >&2; exit 1; }
    sudo=sudo
fi
echo "deps.sh: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -q >&2
$sudo apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
