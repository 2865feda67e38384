# Sourced by scripts/launch and scripts/test: .venv with the pinned dependencies, made once, renewed on change.

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or newer and found none. Try: apt install python3 python3-venv (Debian 12 and newer)," \
        "or PYTHON=/path/to/python3 $0"
}

# prepare_venv EXTRA: installs this package, editable, with the dependencies of EXTRA ("run" has none, "test").
prepare_venv() {
    local extra=$1 python stamp wanted requirement=.
    stamp=.venv/.sockscope-$extra
    # The folder is part of it: a venv that was moved or copied does not work.
    wanted=$(pwd; cat pyproject.toml configs/constraints.txt scripts/venv.sh)
    if [[ -x .venv/bin/sockscope && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    fi
    python=$(find_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python cannot make a virtual environment. Try: apt install python3-venv"
    [[ $extra == run ]] || requirement=".[$extra]"
    echo "${0##*/}: installing pinned dependencies into .venv" >&2
    # A copy that was moved has the old folder in its scripts: make it anew.
    [[ -x .venv/bin/python && $(.venv/bin/python -c 'import sys; print(sys.prefix)') == "$PWD/.venv" ]] ||
        "$python" -m venv --clear .venv
    # The build backend is pinned too: it comes from the constraints, not from an isolated build.
    .venv/bin/python -m pip install -qq --disable-pip-version-check \
        --constraint configs/constraints.txt setuptools
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-build-isolation \
        --constraint configs/constraints.txt --editable "$requirement"
    echo "$wanted" >"$stamp"
    # The test dependencies include those of a run.
    [[ $extra == run ]] || cp "$stamp" .venv/.sockscope-run
}
