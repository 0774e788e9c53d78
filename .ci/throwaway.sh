# Sourced by .ci/newest and .ci/oldest, with the end of the ranges in $END and a list of pins on stdin: installs mmfusion with these
# pins in an environment of its own, runs the tests and removes the environment, however it ends.

usage() {
    cat <<TEXT
usage: .ci/$END [--keep] [PYTEST_ARGUMENT …]

Installs the $END versions that pyproject.toml admits in a new environment below \${TMPDIR:-/tmp}, runs the tests of the model, the
Hub and the stages there, prints the versions and removes the environment. By hand, as torch takes several GB on Linux.
PYTHON names the Python to make the environment with. Arguments that name tests replace those files: \`.ci/$END tests\` runs all.

  --keep    leave the environment where it is, to look into what failed
TEXT
}

# The tests that say most about torch, transformers, huggingface_hub and lightning.
ROOMS=(model training distributed embedding losses onnx hub integration)

keep=
case "${1-}" in
-h | --help) usage && exit ;;
--keep) keep=1 && shift ;;
esac

environment=$(mktemp -d "${TMPDIR:-/tmp}/mmfusion-$END.XXXXXX")
finish() {
    if [ -n "$keep" ]; then echo "kept: $environment"; else rm -rf "$environment"; fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

cat >"$environment/pins.txt"
echo "== $END versions, in $environment"
"${PYTHON:-python3}" -m venv "$environment"
# This takes the place of any constraint in pip's configuration, which could hold versions back.
export PIP_CONSTRAINT="$environment/pins.txt"
"$environment/bin/python" -m pip install --no-input --quiet --progress-bar off --no-cache-dir --no-compile -e '.[dev]' </dev/null
unset PIP_CONSTRAINT

"$environment/bin/python" - <<'PYTHON'
from importlib.metadata import requires, version

from packaging.requirements import Requirement

names = {one.name for one in map(Requirement, requires("mmfusion")) if not one.marker or one.marker.evaluate({"extra": "dev"})}
print("== " + ", ".join(f"{name} {version(name)}" for name in sorted(names - {"mmfusion"}, key=str.lower)), flush=True)
PYTHON

named=
for argument in "$@"; do case "$argument" in tests | tests/*) named=1 ;; esac; done
if [ -z "$named" ]; then set -- "$@" "${ROOMS[@]/#/tests/}"; fi
PATH="$environment/bin:$PATH" "$environment/bin/python" -m pytest -q -n 2 --dist loadfile "$@" </dev/null
