"""Saved memories: a folder of a manifest and safetensors files, replaced in one step.

The folder of a saved memory, format version 3::

    manifest.json                   format version, id of the save, kinds, files, header, checksum
    blocks-<16 hex>.safetensors     blocks of one kind, a tensor a part, a row a block
    columns-<16 hex>.safetensors    kind, number and session of each block, and `column.<name>`
    .lock                           locked by whoever saves
    .writing/                       files of a save that is not finished
    .forget-<16 hex>.json           what is still to be forgotten there, see `outstanding`

Data files are written once and never changed. The manifest names each with its size and SHA-256 and
says which block each row is; -1, in folders of older versions, is a row that is no longer used. Its
own `sha256` is that of the rest of it as compact JSON. Encrypted data files end in `.sealed`; of an
encrypted manifest only the format version, the key's derivation and the wrapped data key are in the
clear (see `vault`).
Nothing is ever unpickled, and nothing outside the folder is read. `schema` declares what manifest
and header may say.
"""

from cmr.memory.store.form import Content, Kind, Part
from cmr.memory.store.saved import Batch, Saved
from cmr.memory.store.saver import SaveReport, save

__all__ = ["Batch", "Content", "Kind", "Part", "SaveReport", "Saved", "save"]
