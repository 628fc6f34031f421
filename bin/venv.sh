# Sourced by the scripts beside it. make_venv EXTRA [INCLUDED ...] puts the virtual environment of this checkout in
# .venv, installs the package there with EXTRA (which brings the INCLUDED extras along), and leaves its path in $venv.
# Nothing outside the checkout is touched. A second run finds the stamps and installs nothing.

# Where bytecode is not kept, as in many containers, every process that a test starts compiles its libraries anew.
unset PYTHONDONTWRITEBYTECODE

root=$(cd "$(dirname "$0")/.." && pwd -P)
venv=$root/.venv

find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$name"
            return 0
        fi
    done
    echo "error: Python 3.11 or newer is needed, and no python3 like that is on the PATH" >&2
    return 1
}

make_venv() {
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || exit 1
        echo "== making .venv with $("$python" --version)" >&2
        "$python" -m venv --clear "$venv"
    fi
    wanted=$(
        "$venv/bin/python" - "$root/pyproject.toml" "$root/constraints.txt" <<'PYTHON'
import hashlib, pathlib, sys

print(hashlib.sha256(b"\0".join(pathlib.Path(name).read_bytes() for name in sys.argv[1:])).hexdigest(), sys.prefix)
PYTHON
    )
    if [ "$(cat "$venv/installed-$1" 2>/dev/null)" != "$wanted" ]; then
        echo "== installing the package with its $1 extra" >&2
        rm -f "$venv"/installed-*
        (cd "$root" && "$venv/bin/python" -m pip install --no-compile -q -c constraints.txt -e ".[$1]")
        for extra in "$@"; do
            echo "$wanted" >"$venv/installed-$extra"
        done
    fi
}
