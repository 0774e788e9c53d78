#!/usr/bin/env bash
# transformers 5.23.0: one class of a repository's code can exist twice in one process.
#
# A repository holds configuration_thing.py and features_thing.py; the second says
# `from .configuration_thing import ThingConfig`. We load the feature extractor and the configuration with the Auto
# classes and trust_remote_code=True. We expected one class ThingConfig, as in any Python package.
#
# What happens:
# - From a Hub repository, extractor first: two classes of the same name and module. The relative import leaves the
#   module without the hash by which transformers knows that it ran already, so AutoConfig runs it again and replaces
#   its classes. isinstance is False, and the class that the extractor holds can no longer be pickled (for instance
#   to send it to a worker process). Configuration first: one class. So the order of two loads decides.
# - From a local folder: two classes in either order. Each file asked for is copied, with what it imports, into a
#   package named after the hash of those files, so that configuration_thing is in two packages. Both can be pickled.
#
# The same with 5.24.0. With 4.57.6 a local folder, extractor first, behaves as the Hub repository does.
# What to do instead: in a repository's code, do not use isinstance or `is` across its files (compare model_type), and
# load first what the other files import. No network is needed: the Hub repository here is a cache folder, offline.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check "transformers==${TRANSFORMERS:-5.23.0}" "numpy==2.3.5"
export HF_HOME="$work/hub" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
cat > "$work/look.py" <<'PY'
import json, pickle, sys
from pathlib import Path
import transformers
from transformers import AutoConfig, AutoFeatureExtractor

root, place, first = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
FILES = {
    "configuration_thing.py": """
from transformers import PretrainedConfig

class ThingConfig(PretrainedConfig):
    model_type = "thing"
""",
    "features_thing.py": """
from transformers import SequenceFeatureExtractor
from .configuration_thing import ThingConfig

class ThingFeatures(SequenceFeatureExtractor):
    config_class = ThingConfig
""",
    "config.json": json.dumps({"model_type": "thing", "auto_map": {"AutoConfig": "configuration_thing.ThingConfig"}}),
    "preprocessor_config.json": json.dumps({
        "feature_extractor_type": "ThingFeatures", "feature_size": 1, "sampling_rate": 16000, "padding_value": 0.0,
        "auto_map": {"AutoFeatureExtractor": "features_thing.ThingFeatures"},
    }),
}
name, folder = str(root / "thing"), root / "thing"
if place == "hub":  # as a download leaves it
    name, cache, commit = "someone/thing", root / "hub/hub/models--someone--thing", "1" * 40
    folder = cache / "snapshots" / commit
    (cache / "refs").mkdir(parents=True, exist_ok=True)
    (cache / "refs/main").write_text(commit)
folder.mkdir(parents=True, exist_ok=True)
for file, text in FILES.items():
    (folder / file).write_text(text)

loaders = {"configuration": AutoConfig, "extractor": AutoFeatureExtractor}
loaded = {key: loaders[key].from_pretrained(name, trust_remote_code=True) for key in sorted(loaders, key=lambda k: k != first)}
held = type(loaded["extractor"]).config_class
try:
    pickled = "yes" if pickle.loads(pickle.dumps(held())).model_type == "thing" else "wrong"
except pickle.PicklingError as error:
    pickled = "no: it's not the same object" if "not the same object" in str(error) else str(error)
seen = (isinstance(loaded["configuration"], held), type(loaded["configuration"]).__module__ == held.__module__, pickled)
print(f"transformers {transformers.__version__}, {place}, {first} first: one class, of one module, pickled:", seen)
want = {
    ("hub", "extractor"): (False, True, "no: it's not the same object"),
    ("hub", "configuration"): (True, True, "yes"),
    ("folder", "extractor"): (False, False, "yes"),
    ("folder", "configuration"): (False, False, "yes"),
}[place, first]
if seen != want:
    sys.exit(f"CHANGED: this finding states {want}")
PY
for place in hub folder; do
    for first in extractor configuration; do
        rm -rf "$work/hub" "$work/thing"
        "$work/venv/bin/python" "$work/look.py" "$work" "$place" "$first"
    done
done
echo "as stated"
