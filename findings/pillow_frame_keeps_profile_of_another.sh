#!/usr/bin/env bash
# Pillow 13.0.0: what an image says of a frame's colours and turning can be those of the frame seen before.
#
# MPO (two or more JPEGs in a file, as stereo cameras and phones write) and TIFF hold frames of which each has its own
# colour profile, or none. We expected that after seek(n), info["icc_profile"] and getexif() are those of frame n, so
# that converting its colours and ImageOps.exif_transpose do with it what they do with the same frame in a file of its own.
#
# What happens: seek() writes what the new frame has and takes nothing out that it has not.
# - MPO and TIFF: a frame without a profile keeps the profile of the frame seen before, so its colours are converted
#   by a profile that is not its own. This holds for frame 0 too once another frame was seen: seek(0) does not bring
#   back what open() gave. Which frames were looked at decides, not the file.
# - MPO: a frame without EXIF keeps the orientation of the one before and exif_transpose turns it (only if getexif()
#   was called before, as exif_transpose does; im.info["exif"] is right). TIFF is right here.
#
# The same with Pillow 11.3.0 and 12.2.0 (10.4.0 cannot write such an MPO).
# What to do instead: open the file anew for frame 0; for others, of an MPO, cut the JPEG out (its place is in
# im.mpinfo, as below) and open that; of a TIFF, ask tag_v2 for 34675 and believe no profile without it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check "pillow==${PILLOW:-13.0.0}"
cat > "$work/look.py" <<'PY'
import io, sys
import PIL
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

ICC, ORIENTATION, TIFF_ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), 0x0112, 34675

def described():
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # a quarter turn
    return {"icc_profile": ICC, "exif": exif.tobytes()}

def mpo(*frames):
    images = [Image.new("RGB", (40, 20)) for _ in frames]
    for image, frame in zip(images, frames):
        image.encoderinfo = {"icc_profile": None, "exif": b"", **frame}  # or it would take those of frame 0
    file = io.BytesIO()
    images[0].save(file, "MPO", save_all=True, append_images=images[1:], **frames[0])
    return file

def tiff(*frames):
    file = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(file, True) as writer:
        for frame in frames:
            Image.new("RGB", (40, 20)).save(writer, "TIFF", **frame)
            writer.newFrame()
    return file

def told(image):  # a profile? the size once turned
    return "icc_profile" in image.info, ImageOps.exif_transpose(image).size

def walk(file, frames):
    with Image.open(file) as image:
        for frame in frames:
            image.seek(frame)
            seen = told(image)
    return seen

def alone(file, frame):
    with Image.open(file) as image:
        if image.format == "TIFF":
            image.seek(frame)
            return TIFF_ICC in image.tag_v2, (20, 40) if image.tag_v2.get(ORIENTATION) == 6 else (40, 20)
        start = image.mpinfo[0xB002][frame]["DataOffset"]  # from the start of the MPF header, but 0 for frame 0
        data = file.getvalue()
        start += data.index(b"MPF\0") + 4 if frame else 0
        with Image.open(io.BytesIO(data[start:])) as jpeg:
            return told(jpeg)

print("Pillow", PIL.__version__)
plain, turned, failed = (False, (40, 20)), (True, (20, 40)), False
for name, make, kept in [("MPO", mpo, turned), ("TIFF", tiff, (True, (40, 20)))]:
    for what, frames, order in [("frame 1 after frame 0", (described(), {}), (0, 1)),
                                ("frame 0 after frame 1", ({}, described()), (0, 1, 0))]:
        file = make(*frames)
        own, seen = alone(file, order[-1]), walk(file, order)
        changed = (own, seen) != (plain, kept)
        failed |= changed
        print(f"{name}, {what}: profile and turned size {seen}, its own are {own}",
              f" CHANGED: this finding states {kept} and {plain}" if changed else "")
sys.exit(failed)
PY
"$work/venv/bin/python" "$work/look.py"
echo "as stated"
