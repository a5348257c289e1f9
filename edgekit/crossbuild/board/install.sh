#!/bin/sh
# Installs what runs this bundle for the user who calls it: no network, no compiler, no root.
#
#   sh install.sh            installs, or says that all is there
#   sh install.sh --place    prints the folder it installs into, and does nothing
#
# EDGEKIT_HOME    folder for installed runtimes; default: ~/.local/share/edgekit
# EDGEKIT_PYTHON  the Python to use; default: the first of the right version among pythonX.Y, python3 and python
#
# Nothing is ever written into the bundle: with a file too many it no longer opens.
set -eu
export LC_ALL=C

PYTHON='@PYTHON@'
MACHINE='@MACHINE@'
GLIBC='@GLIBC@'
PIP='@PIP@'
IMPORTS='@IMPORTS@'
SUMS='@SUMS@'

stop() { # exit code, sentence
    printf 'edgekit: %s\n' "$2" >&2
    exit "$1"
}

root=$(CDPATH='' cd -P -- "$(dirname -- "$0")" && pwd -P)
runtime=$root/runtime

find_place() { # sets place
    command -v sha256sum >/dev/null 2>&1 || stop 24 'there is no sha256sum here — sudo apt install coreutils.'
    [ -f "$root/manifest.json" ] || stop 20 "$root has no manifest.json — run install.sh inside the whole bundle."
    id=$(sha256sum <"$root/manifest.json" | cut -c 1-12)
    home=${EDGEKIT_HOME:-${HOME:+$HOME/.local/share/edgekit}}
    [ -n "$home" ] || stop 27 'neither EDGEKIT_HOME nor HOME is set — set one of them.'
    case $home in
        /*) ;;
        *) home=$PWD/$home ;;
    esac
    case $home/ in
        "$root"/*) stop 27 "EDGEKIT_HOME, $home, is inside the bundle — choose another folder." ;;
    esac
    place=$home/$(basename -- "$root")-$id
}

check_files() { # every file of the runtime is the one that was built
    given=$(cat -- "$runtime/SHA256SUMS" 2>/dev/null | sha256sum)
    [ "${given%% *}" = "$SUMS" ] ||
        stop 20 'runtime/SHA256SUMS was changed or is missing — nothing was run; copy the bundle again.'
    if ! list=$(cd -- "$runtime" && sha256sum -c SHA256SUMS 2>/dev/null); then
        bad=$(printf '%s\n' "$list" | sed -n 's/: FAILED.*$//p' | head -n 1)
        stop 20 "runtime/$bad was changed or is missing — nothing was run; copy the bundle again."
    fi
}

check_machine() {
    here=$(uname -m)
    [ "$here" = "$MACHINE" ] || stop 35 "this machine is $here, and the bundle is for $MACHINE — build it for this board."
}

install_tools() { # a copy, since the bundle may lie where programs cannot be run
    [ -d "$runtime/bin" ] || return 0
    mkdir -p -- "$place/bin" || stop 27 "$place cannot be written — set EDGEKIT_HOME to a folder that can."
    for tool in "$runtime"/bin/*; do
        fresh=$place/bin/.${tool##*/}.new
        if ! { cp -- "$tool" "$fresh" && chmod 755 "$fresh" && mv -f -- "$fresh" "$place/bin/${tool##*/}"; }; then
            stop 27 "$place cannot be written — free some space, or set EDGEKIT_HOME to another folder."
        fi
    done
}

# Says "ok", or what is wrong with the Python that runs it.
probe='
import platform, struct, sys
python, glibc = sys.argv[1:]
here = "%d.%d" % sys.version_info[:2]
name, libc = platform.libc_ver()
numbers = lambda text: [int(part) for part in text.split(".")[:2]]
if here != python or platform.python_implementation() != "CPython":
    print("is %s %s" % (platform.python_implementation(), here))
elif struct.calcsize("P") != 8:
    print("is a 32-bit program: the system is a 32-bit one")
elif name != "glibc" or numbers(libc) < numbers(glibc):
    print("runs on %s %s, and the wheels need glibc %s" % (name or "another C library than glibc", libc, glibc))
else:
    try:
        import ctypes, venv
        print("ok")
    except ImportError as error:
        print("is incomplete (%s)" % error)
'

find_python() { # sets python
    seen=''
    if [ -n "${EDGEKIT_PYTHON:-}" ]; then
        set -- "$EDGEKIT_PYTHON"
        seen="; EDGEKIT_PYTHON is $EDGEKIT_PYTHON"
    else
        set -- "python$PYTHON" python3 python
    fi
    for name; do
        python=$(command -v "$name" 2>/dev/null) || continue
        said=$("$python" -I -c "$probe" "$PYTHON" "$GLIBC" 2>/dev/null) || said='does not run'
        [ "$said" != ok ] || return 0
        seen="$seen; $name $said"
    done
    [ ! -d "$place/bin" ] || printf 'edgekit: llama-bench and llama-perplexity need no Python: %s\n' "$place/bin" >&2
    stop 24 "this bundle needs Python $PYTHON${seen:-; there is no Python here} — $(advice)"
}

advice() {
    # shellcheck disable=SC1091
    os=$(. /etc/os-release 2>/dev/null && printf '%s' "${ID:-} ${VERSION_ID:-}") || os=''
    case $os:$PYTHON in
        debian\ 12:3.11 | raspbian\ 12:3.11 | debian\ 13:3.13 | raspbian\ 13:3.13 | ubuntu\ 24.04:3.12)
            printf 'sudo apt install python3.' ;;
        ubuntu\ 22.04:3.11)
            printf 'sudo apt install python3.11 (in Ubuntu'"'"'s "universe"; the system'"'"'s own python3 stays as it is).' ;;
        *)
            printf 'install it and name it in EDGEKIT_PYTHON, or build the bundle for the Python of this system ' ;
            printf '(target file, [runtime] python).' ;;
    esac
}

is_whole() {
    [ "$(cat -- "$venv/.whole" 2>/dev/null)" = "$SUMS" ] && "$venv/bin/python" -I -c "import $IMPORTS" 2>/dev/null
}

install_wheels() {
    # A virtual environment cannot be moved: it is made where it stays, and the mark is written last.
    rm -f -- "$venv/.whole"
    rm -rf -- "$venv"
    "$python" -I -m venv --without-pip "$venv" >"$log" 2>&1 || failed
    printf 'edgekit: installing into %s\n' "$place" >&2
    # No configuration of pip counts here. What is imported is compiled when it first is; most of numpy never is.
    PIP_CONFIG_FILE=/dev/null "$venv/bin/python" -I -B "$runtime/wheels/$PIP/pip" --isolated --no-input \
        --disable-pip-version-check --no-cache-dir install --no-deps --no-index --only-binary=:all: --require-hashes \
        --no-compile --find-links "$runtime/wheels" --requirement "$runtime/requirements.txt" >"$log" 2>&1 || failed
    "$venv/bin/python" -I -c "import $IMPORTS" >"$log" 2>&1 || failed
    sync # a power cut must not leave this mark beside files that were never written
    printf '%s\n' "$SUMS" >"$venv/.whole.new"
    mv -f -- "$venv/.whole.new" "$venv/.whole"
}

failed() {
    why=$(grep -E 'Error|ERROR' "$log" | tail -n 1 | cut -c 1-300) || why=''
    stop 34 "the installation failed (${why:-$(tail -n 1 "$log")}) — all of it is in $log; run it again."
}

find_place
if [ "${1:-}" = --place ]; then
    printf '%s\n' "$place"
    exit 0
fi
check_machine
check_files
mkdir -p -- "$place" || stop 27 "$place cannot be written — set EDGEKIT_HOME to a folder that can."
venv=$place/venv
log=$place/install.log
if command -v flock >/dev/null 2>&1; then # two at once would take each other's environment away
    exec 9>"$place/.lock"
    flock 9
fi
install_tools
if is_whole; then
    printf 'edgekit: everything is installed in %s\n' "$place" >&2
    exit 0
fi
find_python
install_wheels
printf 'edgekit: done; ask it something: sh %s "What is a Raspberry Pi?"\n' "'$root/chat.sh'" >&2
