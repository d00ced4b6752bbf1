# SPDX-License-Identifier: Apache-2.0
"""Pictures and clips as arrays: decoding what people upload, encoding what they get. Inputs are hostile."""

import io
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import LIMITS, Limits, way_out
from predict2_spec.requests import ImageFormat

# Pillow's own limit is another one and says no way out; ours is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
JPEG_QUALITY = 85  # the original's
H264_CRF = "15"  # what the original's imageio quality 7 comes to
Frames = NDArray[np.uint8]  # [F, H, W, RGB]


def to_unit_range(frames: Frames) -> NDArray[np.float32]:
    """Bytes 0..255 to float32 -1..1."""
    return frames.astype(np.float32) / np.float32(127.5) - np.float32(1)


def from_unit_range(frames: Any) -> Any:
    """Floats in about -1..1 to bytes: clamped, then rounded. A numpy array, or a torch tensor where it is."""
    xp = array_namespace(frames)
    wide = xp.astype(frames, xp.float32, copy=False)
    return xp.astype(((wide + 1) * 127.5 + 0.5).clip(0, 255), xp.uint8)


def decode_image(data: bytes, limits: Limits = LIMITS) -> NDArray[np.uint8]:
    """An uploaded picture as UINT8 [H, W, 3]: upright, RGB; transparency laid over black.

    Raises:
        InvalidRequestError: it is no jpg, png or webp, it is damaged, or it has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            check_pixels(image.width, image.height, limits)  # before anything is decoded
            image.load()
            upright = ImageOps.exif_transpose(image)
            return np.array(_to_rgb(upright))
    except InvalidRequestError:
        raise
    except UnidentifiedImageError as error:
        raise InvalidRequestError("the image can't be read as jpg, png or webp") from error
    except Exception as error:  # Pillow's decoders raise whatever their format's reader raises
        raise InvalidRequestError(
            f"the image can't be read as jpg, png or webp: {error or type(error).__name__}"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "F"):  # deep grey: Pillow's own conversion would clip, not scale
        deep = np.asarray(image, dtype=np.float32)
        top = 65535.0 if image.mode != "F" else max(float(deep.max()), 1.0)
        image = Image.fromarray((deep / top * 255).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba)
    return image.convert("RGB")


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Refuse a picture or frame that is too large (InvalidRequestError)."""
    if width * height > limits.media_pixels:
        raise InvalidRequestError(
            f"the input is {width} x {height} pixels; the limit is {limits.media_pixels} in all. Shrink it, "
            f"{way_out('media_pixels')}"
        )


def decode_last_frames(data: bytes, count: int, limits: Limits = LIMITS) -> Frames:
    """The last `count` frames of an uploaded mp4, UINT8 [count, H, W, 3].

    Only `count` frames are held at a time, however long the clip is.

    Raises:
        InvalidRequestError: it is no readable mp4 with pictures, is too large, or has fewer frames.
    """
    last: deque[av.VideoFrame] = deque(maxlen=count)
    seen = 0
    with open_clip(data) as container:
        for frame in video_frames(container, limits):
            seen += 1
            last.append(frame)
        frames = [upright(frame) for frame in last]
    if len({frame.shape for frame in frames}) > 1:
        raise InvalidRequestError(
            "the video changes its size within the frames to go on from; scale it to one size"
        )
    if seen < count:
        raise InvalidRequestError(
            f"the video has {seen} frames; num_conditional_frames {count} needs at least {count}"
        )
    return np.stack(frames)


@contextmanager
def open_clip(data: bytes) -> Iterator[av.container.InputContainer]:
    """An uploaded mp4, open for reading; whatever its bytes make the reader raise is a refusal.

    Raises:
        InvalidRequestError: it can't be opened, or what is read from it within the block is damaged.
    """
    try:
        # A fixed reader: left to guess, FFmpeg would also follow playlists to other files and addresses.
        with av.open(io.BytesIO(data), "r", format="mp4", metadata_errors="replace") as container:
            yield container
    except av.error.FFmpegError as error:
        raise InvalidRequestError(f"the video can't be read as an mp4: {error.strerror}") from error
    except (
        ValueError,
        OverflowError,
        MemoryError,
    ) as error:  # PyAV's own, about what a file claims
        raise InvalidRequestError(
            f"the video can't be read as an mp4 ({type(error).__name__}); it is damaged, or of a kind that isn't known"
        ) from error


def upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The frame as people see it: cameras store a rotation instead of turning the picture."""
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    return np.rot90(pixels, k=round(frame.rotation / 90))  # both count anticlockwise


def video_frames(container: av.container.InputContainer, limits: Limits) -> Iterator[av.VideoFrame]:
    """The frames of an uploaded clip as they are decoded; raises as `video_packets`."""
    for packet in video_packets(container, limits):
        for frame in packet.decode():
            check_pixels(frame.width, frame.height, limits)
            yield frame


def video_packets(container: av.container.InputContainer, limits: Limits) -> Iterator[Any]:
    """What an uploaded clip's frames are packed in, one each, and at the end the empty packet that a decoder needs.

    They are what is counted, not frames: an mp4 may ask for frames to be decoded and dropped.

    Raises:
        InvalidRequestError: there is no video stream, a frame is too large, or the clip too long; by what its header
            says, or as soon as it shows.
    """
    if not container.streams.video:
        raise InvalidRequestError("the mp4 holds no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise InvalidRequestError(
            "the mp4's video is in a format that can't be decoded here; encode it as H.264"
        )
    check_pixels(stream.width, stream.height, limits)
    area, tick = stream.width * stream.height, float(stream.time_base or 0)
    check_length(stream.frames, stream.frames * area, (stream.duration or 0) * tick, limits)
    count, pixels, begin = 0, 0, None
    for packet in container.demux(stream):
        count += bool(packet.size)
        pixels += bool(packet.size) * stream.width * stream.height
        begin = packet.dts if begin is None else begin
        seconds = 0 if packet.dts is None or begin is None else (packet.dts - begin) * tick
        check_length(count, pixels, seconds, limits)
        yield packet


def check_length(frames: int, pixels: int, seconds: float, limits: Limits) -> None:
    """Refuse a clip that would take too long to decode.

    Args:
        frames: of the clip, or those counted so far.
        pixels: of all these frames together.
        seconds: how long they play.
        limits: the most of each.

    Raises:
        InvalidRequestError: there are more.
    """
    if frames > limits.media_frames:
        raise InvalidRequestError(
            f"the video has {frames} frames or more; the limit is {limits.media_frames}. Cut it to the part you need, "
            f"{way_out('media_frames')}"
        )
    if seconds > limits.media_seconds:
        raise InvalidRequestError(
            f"the video plays {seconds:g} s or longer; the limit is {limits.media_seconds:g} s. Cut it to the part you "
            f"need, {way_out('media_seconds')}"
        )
    if pixels > limits.media_total_pixels:
        raise InvalidRequestError(
            f"the video has {pixels} pixels or more in all its frames; the limit is {limits.media_total_pixels}. "
            f"Cut it to the part you need, or shrink it, {way_out('media_total_pixels')}"
        )


def encode_image(picture: NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """A UINT8 [H, W, 3] picture as a jpg or png file."""
    buffer = io.BytesIO()
    if image_format == "png":
        Image.fromarray(picture).save(buffer, format="PNG")
    else:
        Image.fromarray(picture).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def encode_mp4(frames: Frames, fps: int) -> bytes:
    """A clip as an H.264 mp4; height and width must be even."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # The same frames must give the same bytes: one thread whatever the machine, and no macroblock tree,
        # whose lookahead made x264 differ from run to run on small pictures.
        stream.options = {"crf": H264_CRF, "x264-params": "mbtree=0"}
        stream.codec_context.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
