#!/usr/bin/env bash
# Installs what the project needs, on Debian or Ubuntu. Prints what it installs; does nothing if all is installed.
#
#   scripts/deps.sh build      C, libpng, libjpeg, ...     for `make` and `make test`; optional: libwebp, giflib and
#                                                          libtiff, for images of these formats
#   scripts/deps.sh serve      libmicrohttpd               for the HTTP server
#   scripts/deps.sh mpi        Open MPI                    to start training with mpirun, on one machine or many
#   scripts/deps.sh tex        TeX engines, Poppler        to compile and render programs; optional: xelatex, and
#                                                          packages and fonts that figures on the net use
#   scripts/deps.sh tex-fonts  Fira, Libertine, STIX, ...  fonts for dev/formula/render.py, 500 MB; optional, not in "all"
#   scripts/deps.sh python     a Python with NumPy, ...    to convert models and data: build/venv, scripts/requirements.txt
#   scripts/deps.sh fixtures   PyTorch, transformers, PEFT the references of the tests, added to build/venv
#   scripts/deps.sh idefics3   a newer transformers        what test/test_idefics3.py compares with: build/venv-idefics3
#   scripts/deps.sh logs       TensorBoard, MLflow, W&B    what exported logs are tested with: build/venv-logs
#   scripts/deps.sh cuda       CUDA compiler               for the compile proof of the kernels; see cuda_toolkit.sh
#   scripts/deps.sh page       KaTeX                       for formulas on the page of serve; optional. Chromium, tidy and
#                                                          Playwright for the tests of that page and of eval's reports:
#                                                          build/venv-page
#   scripts/deps.sh wasm       Emscripten                  for `make wasm`, the page that needs no server; optional
#   scripts/deps.sh ci         clang, OpenMP, lintian, ... for the checks of .ci/run: zsh and fish for their completions,
#                                                          debootstrap for the package in a clean system
#   scripts/deps.sh aarch64    a cross compiler, qemu      for test/aarch64.sh; optional
#   scripts/deps.sh all
set -euo pipefail

packages=() optional=() foreign= toolkit= requirements=() logs= page= idefics3=
for group in "${@:-build}"; do
    case $group in
    build)
        packages+=(build-essential libpng-dev zlib1g-dev libjpeg-dev)
        optional+=(libwebp-dev libgif-dev libtiff-dev) ;;
    serve) packages+=(build-essential libmicrohttpd-dev) ;;
    mpi) packages+=(openmpi-bin libopenmpi-dev) ;;
    tex)
        packages+=(texlive-latex-base texlive-latex-extra texlive-pictures texlive-luatex lmodern cm-super-minimal)
        packages+=(poppler-utils)
        optional+=(texlive-xetex texlive-fonts-recommended texlive-science) ;;
    tex-fonts) optional+=(texlive-fonts-extra texlive-plain-generic) ;;
    python) packages+=(python3-numpy python3-pil python3-venv) requirements+=(scripts/requirements.txt) ;;
    fixtures)
        packages+=(python3-torch python3-venv python3-psutil python3-yaml)
        requirements+=(scripts/requirements.txt test/requirements.txt test/requirements-alone.txt) ;;
    idefics3) packages+=(python3-torch python3-pil python3-venv) idefics3=yes ;;
    logs) packages+=(python3-numpy python3-venv) logs=yes ;;
    cuda) packages+=(build-essential python3-venv) toolkit=yes ;;
    page) packages+=(python3-venv python3-pil python3-numpy) optional+=(libjs-katex chromium tidy) page=yes ;;
    wasm) optional+=(emscripten) ;;
    ci) packages+=(clang libomp-dev) optional+=(lintian zsh fish debootstrap) ;;
    aarch64)
        foreign=arm64
        optional+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user {libpng,zlib1g,libjpeg}-dev:arm64) ;;
    all) exec "$0" build serve mpi tex python fixtures idefics3 logs cuda page wasm ci aarch64 ;;
    *)
        echo "deps.sh: unknown group '$group'; expected build, serve, mpi, tex, tex-fonts, python, fixtures, idefics3, logs, cuda," \
            "page, wasm, ci, aarch64 or all" >&2
        exit 2
        ;;
    esac
done

missing() { # PACKAGE...: prints those that are not installed
    local package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || echo "$package"
    done
}

mapfile -t needed < <(missing "${packages[@]}")
mapfile -t wanted < <(missing "${optional[@]}")

# virtual_environment FOLDER REQUIREMENTS...: makes it, on top of the system's Python packages, with these files; what
# *-alone.txt names is installed without its dependencies. (Not by FOLDER/bin/pip: where the folder is a copy of another,
# that installs into the other one.)
virtual_environment() {
    local wanted=() alone=() file folder=$1
    shift
    for file in "$@"; do
        if [[ $file == *-alone.txt ]]; then alone+=(-r "$file"); else wanted+=(-r "$file"); fi
    done
    [ "$(cat "$folder/requirements" 2>/dev/null)" = "$(cat "$@")" ] && return
    echo "deps.sh: putting the packages of $* into $folder" >&2
    mkdir -p build
    /usr/bin/python3 -m venv --system-site-packages "$folder" && "$folder/bin/python" -m pip install -q "${wanted[@]}" >&2 &&
        { [ ${#alone[@]} -eq 0 ] || "$folder/bin/python" -m pip install -q --no-deps "${alone[@]}" >&2; } &&
        cat "$@" >"$folder/requirements"
}

finish() { # installs what is not a system package, and exits
    cd "$(dirname "$0")/.."
    [ -z "$toolkit" ] || scripts/cuda_toolkit.sh >/dev/null || exit 1
    [ ${#requirements[@]} -eq 0 ] || virtual_environment build/venv "${requirements[@]}" || exit 1
    [ -z "$idefics3" ] || virtual_environment build/venv-idefics3 test/requirements-idefics3.txt || exit 1
    [ -z "$logs" ] || virtual_environment build/venv-logs test/requirements-logs.txt || exit 1
    [ -z "$page" ] || virtual_environment build/venv-page test/requirements-page.txt || exit 1
    exit 0
}
[ ${#needed[@]} -eq 0 ] && [ ${#wanted[@]} -eq 0 ] && finish

cannot() { # WHY: exits, with an error only if a required package is missing
    [ ${#needed[@]} -gt 0 ] && { echo "deps.sh: $1: ${needed[*]}" >&2; exit 1; }
    echo "deps.sh: not installed, but optional: ${wanted[*]}; going on without" >&2
    finish
}

command -v apt-get >/dev/null || cannot "apt-get is not here; install these packages of your system instead"
sudo=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || cannot "not root and no sudo; install as root"
    sudo=sudo
fi
export DEBIAN_FRONTEND=noninteractive
install() { $sudo apt-get install -y -q --no-install-recommends "$@" >&2; }
both=("${needed[@]}" "${wanted[@]}")
echo "deps.sh: installing ${both[*]}" >&2
[ -z "$foreign" ] || $sudo dpkg --add-architecture "$foreign"
$sudo apt-get update -q >&2 || echo "deps.sh: the list of packages could not be renewed" >&2
[ ${#needed[@]} -eq 0 ] || install "${needed[@]}"
for package in "${wanted[@]}"; do # one by one: a system may lack one of them
    install "$package" || echo "deps.sh: $package cannot be installed, but is optional; going on without" >&2
done
finish
