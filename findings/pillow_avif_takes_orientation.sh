#!/usr/bin/env bash
# Pillow 13.0.0: saving an AVIF takes the orientation out of the caller's Exif object, so the next file lies on its side.
#
# Web shops save a photo twice: AVIF, and JPEG for older browsers. Both get exif=photo.getexif(), so that viewers turn
# them alike. We expected save() to read its arguments only, as it does for JPEG, PNG, WebP and TIFF.
#
# What happens: the AVIF writer moves the orientation to where AVIF keeps it, and pops it from the object it was given.
# getexif() returns the image's own object, so the photo itself forgets how it is turned: the JPEG saved after the
# AVIF has no orientation, and ImageOps.exif_transpose(photo) does nothing any more. Saved in the other order, or given
# bytes, all is well. Nothing is said.
#
# The same with Pillow 11.3.0 and 12.2.0.
# What to do instead: exif=photo.getexif().tobytes(), or turn the pixels first with ImageOps.exif_transpose.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check "pillow==${PILLOW:-13.0.0}"
cat > "$work/look.py" <<'PY'
import io, sys
import PIL
from PIL import Image, ImageOps

def photo():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
    return Image.open(file)

def save(image, kind, exif):
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return ImageOps.exif_transpose(Image.open(file)).size

def both(first, second, as_bytes=False):
    """The sizes at which the two files and then the photo itself are shown; upright is (20, 40)."""
    image = photo()
    sizes = []
    for kind in (first, second):
        exif = image.getexif()
        sizes.append(save(image, kind, exif.tobytes() if as_bytes else exif))
    return [*sizes, ImageOps.exif_transpose(image).size]

print("Pillow", PIL.__version__)
up, side, failed = (20, 40), (40, 20), False
for what, seen, want in [
    ("AVIF, then JPEG", both("AVIF", "JPEG"), [up, side, side]),
    ("JPEG, then AVIF", both("JPEG", "AVIF"), [up, up, side]),
    ("AVIF, then JPEG, EXIF as bytes", both("AVIF", "JPEG", True), [up, up, up]),
    ("WebP, then JPEG", both("WEBP", "JPEG"), [up, up, up]),
    ("TIFF, then JPEG", both("TIFF", "JPEG"), [up, up, up]),
]:
    failed |= seen != want
    print(f"{what}, then the photo: {seen}", "" if seen == want else f" CHANGED: this finding states {want}")
sys.exit(failed)
PY
"$work/venv/bin/python" "$work/look.py"
echo "as stated"
