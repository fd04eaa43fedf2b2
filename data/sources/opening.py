"""What kind of source a root is, by what lies there; data/source=NAME says it instead."""

from pathlib import Path

from data.sources.archives import Shards, TarImages, ZipImages
from data.sources.files import FileList, ImageFolder
from data.sources.hub import hugging_face
from data.sources.listing import SUFFIXES, entries_of
from data.sources.lmdb_images import LmdbImages
from data.sources.source import Source


def open_images(*, root: str) -> Source:
    """The source that root is.

    A folder is an LMDB if data.mdb lies in it, shards if .tar files, a Hugging Face data set if .parquet or .arrow files do, in
    its folder data too, or if `datasets` saved several splits there, and else a folder of images; a file is what its suffix
    says; braces mean shards.

    Raises:  ValueError: nothing is there, or no source reads such a file.
    """
    if not root:
        raise ValueError("the path of images is empty (data.root=), as a variable of the shell that is not set: give a folder")
    path = Path(root).expanduser()
    inside, in_data = (
        {Path(entry.name).suffix for entry in entries_of(folder)} if folder.is_dir() else set()
        for folder in (path, path / "data")
    )
    if (path / "data.mdb").is_file():
        return LmdbImages(root=root)
    if ".tar" in inside or "{" in path.name:
        return Shards(root=root, member=None)
    tables = {".parquet", ".arrow"} & (inside if inside & set(SUFFIXES) else inside | in_data)
    if tables or (path / "dataset_dict.json").is_file() or path.suffix == ".parquet":
        return hugging_face(root=root, subset=None, split="train", column="image", revision=None, groups_mixed=4)
    if path.is_file():
        if path.suffix == ".txt":
            return FileList(root=root, relative_to=None)
        if path.suffix in (".zip", ".tar"):
            return ZipImages(root=root) if path.suffix == ".zip" else TarImages(root=root)
        raise ValueError(
            f"{root} is a file: give the folder that holds the images, a .txt that lists them, or a .zip, .tar or .parquet"
        )
    return ImageFolder(root=root)
