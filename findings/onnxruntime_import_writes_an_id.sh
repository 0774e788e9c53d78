#!/usr/bin/env bash
# onnxruntime 1.32.0 on Linux: `import onnxruntime` alone writes an id of the machine and a database into ~/.cache.
#
# We expected an import to read files. Older versions (1.22.0 here) do, and their notes say that data is collected in
# Windows builds only. The wheel for Linux now has a collector built in, which is on by default: it makes the id, puts
# its events into a SQLite file below ~/.cache/Microsoft, and sends them from there. A job that promises to write into
# its output folder alone breaks that promise by an import; a read-only home, or one that many machines share, meets it
# as well.
#
# What to do instead: set ORT_DISABLE_TELEMETRY=1 before the first import. Calling onnxruntime.disable_telemetry_events()
# is too late, as the files are made by the import.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
files() { (cd "$1" && find . -type f -not -name '*.pyc' | sort | tr '\n' ' '); }

for version in 1.22.0 1.32.0; do
    "${PYTHON:-python3}" -m venv "$work/$version"
    "$work/$version/bin/pip" install -qq --disable-pip-version-check "onnxruntime==$version" "numpy==2.3.4"
    for setting in on off; do
        home="$work/home-$version-$setting"
        mkdir "$home"
        off=()
        if [ "$setting" = off ]; then off=(ORT_DISABLE_TELEMETRY=1); fi
        env -i PATH="$PATH" HOME="$home" "${off[@]}" "$work/$version/bin/python" -c 'import onnxruntime'
        echo "onnxruntime $version, telemetry $setting by the environment: $(files "$home")" | tee -a "$work/seen"
    done
done

# Seen on Python 3.11, x86_64:
cat >"$work/expected" <<'TEXT'
onnxruntime 1.22.0, telemetry on by the environment: 
onnxruntime 1.22.0, telemetry off by the environment: 
onnxruntime 1.32.0, telemetry on by the environment: ./.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid ./.cache/Microsoft/DeveloperTools/.onnxruntime/onnxruntime.db 
onnxruntime 1.32.0, telemetry off by the environment: 
TEXT
diff "$work/expected" "$work/seen" && echo "as seen before"
