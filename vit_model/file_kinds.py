"""Name what a file or folder is that is given as weights and holds none, and say what to do."""

import json
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")  # of files of tensors
CONVERT = "export the PyTorch model's state_dict as .safetensors instead"
KERAS = f"is a Keras model; rebuild it in PyTorch, or {CONVERT}"
TENSORFLOW = f"is a TensorFlow model; convert it to PyTorch, or {CONVERT}"
TORCHSCRIPT = "is a TorchScript archive, which holds code; save its state_dict alone"
COMPILED = f"compiled for one runtime and without named tensors; {CONVERT}"
COREML = f"is a Core ML model; {CONVERT}"
ONE_FILE = (
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pth makes one file of it"
)
ONNX = f"is an ONNX graph, whose tensors have lost their names; {CONVERT}"
AGAIN = "download or copy it again"

# By the end of the name.
NAMES = {
    r"\.(h5|hdf5|keras)": KERAS,
    r"saved_model\.pbtxt|\.pb|\.ckpt\.index|\.index|\.ckpt(-\d+)?\.(meta|data-\d+-of-\d+)|-\d+\.meta"
    r"|\.data-\d+-of-\d+": TENSORFLOW,
    r"\.tflite": f"is a TensorFlow Lite model; {CONVERT}",
    r"\.onnx": ONNX,
    r"\.(mlmodel|mlpackage|mlmodelc)": COREML,
    r"\.(engine|plan|trt)": f"is a TensorRT engine, {COMPILED}",
    r"\.(pt2|pte|ptl)": f"is an exported program, {COMPILED}",
    r"\.(msgpack|flax|orbax)": f"is a checkpoint of Flax; save it as .npz, or {CONVERT}",
    r"\.gguf": f"is a GGUF file; {CONVERT}",
    r"\.(pkl|pickle|joblib)": f"is a pickle, which holds code and is never opened; {CONVERT}",
    r"\.npy": "is one array without a name; numpy.savez(FILE.npz, **tensors) keeps names",
    r"\.distcp": f"is a part of a checkpoint of torch.distributed; {ONE_FILE}",
    r"\.index\.json": "is the index of several files; give their folder as --model",
    r"\.(zip|gz|xz|zst|bz2|7z|tgz)|(?<!\.pth)\.tar": "is an archive; unpack it and give the file inside",
}
# By the first bytes.
BYTES = {
    b"version https://git-lfs": "is a Git LFS pointer and not the weights; git lfs pull fetches them",
    b"\x89HDF\r\n\x1a\n": KERAS,
    b"GGUF": f"is a GGUF file; {CONVERT}",
    b"\x93NUMPY": "is one array without a name; numpy.savez(FILE.npz, **tensors) keeps names",
    b"ptrt": f"is a TensorRT engine, {COMPILED}",
    b"ftrt": f"is a TensorRT engine, {COMPILED}",
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"\xfd7zXZ\x00": "is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
}
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, as its own reader has it
HTML = re.compile(rb"\s*<(!doctype|html|head|\?xml|error)", re.IGNORECASE)
PAGE = f"is a web page or a server's answer and not the weights; {AGAIN}, from the link of the file itself"


def kind_by_name(name: str) -> str | None:
    """Return what a file of this name is, after "FILE ", or None for a name that weights may have."""
    for pattern, kind in NAMES.items():
        if re.search(f"({pattern})/?$", name.lower()):
            return kind
    return None


def kind_by_content(path: Path) -> str | None:
    """Return what a file is, after "FILE ", if its bytes show that it is not what its name says."""
    size = path.stat().st_size
    if not size:
        return f"is empty; {AGAIN}"
    with open(path, "rb") as file:
        head = file.read(512)
    for magic, kind in BYTES.items():
        if head.startswith(magic):
            return kind
    if HTML.match(head):
        return PAGE
    if head[4:8] == b"TFL3":
        return NAMES[r"\.tflite"]
    if path.suffix == ".safetensors":
        return _kind_of_safetensors(path, head, size)
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it and give the file inside"
    if b"onnx" in head[:64].lower():
        return ONNX
    return None


def _kind_of_safetensors(path: Path, head: bytes, size: int) -> str | None:
    """Return what is wrong with a file that has no header, or is shorter than its header says."""
    if head[8:9] not in (b"{", b""):
        if head.startswith((b"PK", b"\x80")):
            return "is a torch file with the name of a safetensors file; rename it to .pth"
        return f"is no safetensors file; {AGAIN}"
    header_size = int.from_bytes(head[:8], "little")  # bytes
    end = 8 + header_size
    if end <= size and header_size > MAX_HEADER_BYTES:
        return f"is no safetensors file: its header would have {header_size:,} bytes; {AGAIN}"
    if end <= size:
        with open(path, "rb") as file:
            header = file.read(end)[8:]
        try:
            tensors = json.loads(header)
            ends = [about["data_offsets"][1] for name, about in tensors.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None  # the reader of the format says more
        end += max(ends, default=0)
    return f"is cut off: it has {size:,} of {end:,} bytes; {AGAIN}" if size < end else None


def _kind_of_zip(path: Path) -> str | None:
    """Return which archive a file is, unless it is torch's or numpy's."""
    if not zipfile.is_zipfile(path):
        return f"is cut off: the end of the archive is missing; {AGAIN}"
    with zipfile.ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        return TORCHSCRIPT
    if "model.weights.h5" in names:
        return KERAS
    is_numpy = path.suffix == ".npz" and all(name.endswith(".npy") for name in names)
    if "data.pkl" in names or is_numpy:
        return None
    return f"is an archive of {', '.join(names[:3])} and not of tensors; unpack it and give the file inside"


def kind_of_folder(names: Collection[str]) -> str | None:
    """Return what a folder is, after "FOLDER ", by the names in it; or None where that is not known."""
    if "progress.json" in names and ".metadata" in names:
        return (
            "is the state of a training between two steps, not a model; the model is in the folder that "
            "the training got as --output, once it is done"
        )
    if any(name.endswith(".distcp") for name in names):
        return f"is a checkpoint of torch.distributed; {ONE_FILE}"
    if "saved_model.pb" in names or any(name.endswith(".ckpt.index") for name in names):
        return TENSORFLOW
    if "Manifest.json" in names:
        return COREML
    return None
