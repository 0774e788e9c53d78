#!/usr/bin/env bash
# Pillow 13.0.0 (LittleCMS 2.19): greys with a linear profile come out of ImageCms up to 10 levels of 255 too dark.
#
# We turn 8-bit greys into sRGB with ImageCms.buildTransform and its defaults. For a profile of one gamma, the ICC
# specification gives the result in one line: light = (value / 255) ** gamma, then the curve of sRGB. We expected it to
# within a rounding, as 256 greys fit a table of 256 entries.
#
# What happens: LittleCMS joins 33 points of the result by straight lines, one point for about 8 greys. Where the exact
# curve is steep and bent, near black, that is far off: a linear (gamma 1) grey of 2 becomes 12 instead of 22. The
# further the gamma is below that of sRGB, the worse: 65 off at gamma 0.45; at 2.2 and above nobody sees it. The same
# curve in a profile of three colours is exact to 0.5, so grey and R = G = B differ. The flag HIGHRESPRECALC, whose text
# promises better accuracy, still leaves 7 off. Linear grey profiles are common in scans, renders and astronomy.
#
# The same with Pillow 10.4.0 (LittleCMS 2.16) and 11.3.0 (2.17).
# What to do instead: give the flag NOOPTIMIZE, which is exact. To stay fast, transform the 256 greys once and use
# Image.point with what comes out.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check "pillow==${PILLOW:-13.0.0}"
cat > "$work/look.py" <<'PY'
import io, struct, sys
import PIL
from PIL import Image, ImageCms, features

def number(x): return struct.pack(">i", round(x * 65536))
def xyz(*values): return b"XYZ \0\0\0\0" + b"".join(map(number, values))

def profile(space, gamma):  # the least that a version 4 display profile holds
    curve = b"para\0\0\0\0\0\0\0\0" + number(gamma)
    text = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2, 28) + b"\0x"
    tags = {b"desc": text, b"cprt": text, b"wtpt": xyz(0.9642, 1, 0.8249)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:  # the primaries of sRGB
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve, b"rXYZ": xyz(0.43607, 0.22249, 0.01392),
                 b"gXYZ": xyz(0.38515, 0.71687, 0.09708), b"bXYZ": xyz(0.14307, 0.06061, 0.71410)}
    table, data = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(tag))
        data += tag + b"\0" * (-len(tag) % 4)
    head = struct.pack(">I4xI4s4s4s6H4s28x", 128 + len(table + data), 0x04000000, b"mntr", space, b"XYZ ",
                       2026, 1, 1, 0, 0, 0, b"acsp") + xyz(0.9642, 1, 0.8249)[8:]
    return ImageCms.ImageCmsProfile(io.BytesIO(head.ljust(128, b"\0") + table + data))

def formula(value, gamma):
    light = (value / 255) ** gamma
    return 255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055)

def error(gamma, mode="L", flags=0):
    """The largest difference from the formula, its grey, and what that grey became."""
    greys = Image.frombytes("L", (256, 1), bytes(range(256))).convert(mode)
    transform = ImageCms.buildTransform(profile({"L": b"GRAY", "RGB": b"RGB "}[mode], gamma), ImageCms.createProfile("sRGB"),
                                        mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, flags)
    seen = ImageCms.applyTransform(greys, transform).getchannel("G").tobytes()
    return max((abs(seen[grey] - formula(grey, gamma)), grey, seen[grey]) for grey in range(256))

print("Pillow", PIL.__version__, "LittleCMS", features.version("littlecms2"))
flag, failed = ImageCms.Flags, False
for what, seen, low, high in [
    ("grey, gamma 1", error(1), 9, 11),
    ("grey, gamma 1, HIGHRESPRECALC", error(1, flags=flag.HIGHRESPRECALC), 6, 8),
    ("grey, gamma 1, NOOPTIMIZE", error(1, flags=flag.NOOPTIMIZE), 0, 0.6),
    ("R = G = B, gamma 1", error(1, "RGB"), 0, 0.6),
    ("grey, gamma 0.45", error(0.45), 60, 70),
    ("grey, gamma 1.8", error(1.8), 1, 2),
    ("grey, gamma 2.4", error(2.4), 0, 1),
]:
    off, grey, became = seen
    print(f"{what}: {off:.1f} of 255 off at grey {grey}, which becomes {became}", end="")
    failed |= not low <= off <= high
    print("" if low <= off <= high else f"  CHANGED: this finding states {low} to {high}")
sys.exit(failed)
PY
"$work/venv/bin/python" "$work/look.py"
echo "as stated"
