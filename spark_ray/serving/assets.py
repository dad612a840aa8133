"""Assets: media that a caller uploaded or had fetched, kept for a while, and the caller's alone.

A file arrives in parts (one, or as many as a resumed upload took), each committed at once, so that
what was received survives the loss of a replica. Its first bytes say what it is.
"""

import builtins
import hashlib
import re
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from sqlalchemy import case, delete, func, select, update
from sqlalchemy.orm import Session

from spark_ray.core.storage import Folder, open_read
from spark_ray.media.sniff import SNIFFED_BYTES, media_type
from spark_ray.serving.database import Asset, AssetPart, Database
from spark_ray.serving.errors import ApiError, not_found, too_large
from spark_ray.serving.settings import RequestLimits
from spark_ray.serving.shown import ASSET_ID

_ID = re.compile(ASSET_ID)
_CHUNK_BYTES = 1 << 20


class AssetStore:
    """Assets in the server's state, and what is known of them in the database."""

    def __init__(self, state: str, database: Database, limits: RequestLimits) -> None:
        self._folder = Folder(f"{state}/assets", scratch="writing")
        self._database, self._limits = database, limits

    def begin(self, owner: str, size_bytes: int | None = None) -> Asset:
        """A new asset without bytes; `size_bytes` None where the end will tell.

        Raises:
            ApiError: it would be too large, or the caller has too many.
        """
        if size_bytes is not None and size_bytes > self._limits.max_upload_bytes:
            raise too_large("the file", self._limits.max_upload_bytes)
        now = time.time()
        asset = Asset(
            id=f"asset-{secrets.token_hex(12)}",
            owner=owner,
            kind="unknown",
            media_type="application/octet-stream",
            size_bytes=-1 if size_bytes is None else size_bytes,
            received_bytes=0,
            sha256=None,
            created=now,
            expires=now + self._limits.asset_lifetime_s,
            complete=False,
        )
        with self._database.session() as session:
            # Of one whose size nobody told, what has come of it.
            bytes_of_one = case(
                (Asset.size_bytes < 0, Asset.received_bytes), else_=Asset.size_bytes
            )
            mine = select(func.count(), func.coalesce(func.sum(bytes_of_one), 0)).where(
                Asset.owner == owner, Asset.expires >= now
            )
            held, held_bytes = session.execute(mine).one()
            limits = self._limits
            if (
                held >= limits.max_assets_per_key
                or held_bytes + (size_bytes or 0) > limits.max_asset_bytes_per_key
            ):
                raise ApiError(
                    429,
                    "too_many_assets",
                    f"this key has {held} assets of {held_bytes:,} bytes together, of "
                    f"{limits.max_assets_per_key} and {limits.max_asset_bytes_per_key:,} that it "
                    "may have; delete some of them",
                    retry_after_s=60.0,
                )
            session.add(asset)
        return asset

    @contextmanager
    def part(self, asset: Asset, offset: int) -> Iterator["PartWriter"]:
        """Write the bytes from `offset` on; what was written is kept, however the block ends.

        Raises:
            ApiError: the asset goes on elsewhere, or becomes too large.
        """
        if asset.complete or offset != asset.received_bytes:
            raise _wrong_offset(asset.id, asset.received_bytes)
        most = self._limits.max_upload_bytes if asset.size_bytes < 0 else asset.size_bytes
        # The name is new each time: two writers at one offset must not share a file.
        name = f"{_place(asset.id)}/{offset:015d}-{secrets.token_hex(4)}"
        with self._folder.writer(name) as file:
            writer = PartWriter(file, most - offset)
            failure: BaseException | None = None
            try:
                yield writer
            except BaseException as error:
                if writer.refused:
                    raise  # the bytes are not wanted at all
                failure = error  # raised again once the part is kept
        self._received(asset, offset, writer.size_bytes, name)
        if failure is not None:
            raise failure

    def _received(self, asset: Asset, offset: int, size_bytes: int, name: str) -> None:
        with self._database.session() as session:
            changed = session.execute(
                update(Asset)
                .where(Asset.id == asset.id, Asset.received_bytes == offset)
                .values(received_bytes=offset + size_bytes)
            )
            won = changed.rowcount == 1  # type: ignore[attr-defined]
            if won and size_bytes:
                session.add(AssetPart(asset_id=asset.id, offset=offset, name=name))
        if not won:
            self._folder.remove(name)
            raise _wrong_offset(asset.id, offset + size_bytes)
        asset.received_bytes = offset + size_bytes
        if not size_bytes:
            self._folder.remove(name)

    def complete(self, asset: Asset) -> Asset:
        """Look at what came, and make it one file. Broken off anywhere, it can be done again.

        Raises:
            ApiError: it is no media that we read, and nothing of it is kept; or somebody else is
                just completing it.
        """
        digest, head, size_bytes = hashlib.sha256(), b"", 0
        file = f"{_place(asset.id)}/file"
        with self._folder.writer(file) as target:
            for name in self._parts(asset.id):
                with open_read(self._folder / name) as part:
                    while chunk := part.read(_CHUNK_BYTES):
                        head = head or chunk[:SNIFFED_BYTES]
                        digest.update(chunk)
                        target.write(chunk)
                        size_bytes += len(chunk)
            if size_bytes != asset.received_bytes:
                raise ApiError(
                    503, "upload_unfinished", f"asset {asset.id} is just being completed",
                    retry_after_s=1.0,
                )  # fmt: skip
        found = media_type(head)
        if found is None:
            self._remove(asset.id)
            raise ApiError(
                415,
                "unsupported_media",
                "this is no video, sound or picture that can be read; send MP4, MOV, MKV, WebM, "
                "AVI, MPEG-TS, WAV, FLAC, MP3, Ogg, JPEG, PNG or WebP",
            )
        with self._database.session() as session:
            stored = session.get(Asset, asset.id)
            if stored is None:
                raise not_found("asset", asset.id)
            stored.kind, stored.media_type = found
            stored.size_bytes = stored.received_bytes
            stored.sha256, stored.complete = digest.hexdigest(), True
            session.execute(delete(AssetPart).where(AssetPart.asset_id == asset.id))
        for name in self._folder.names(_place(asset.id)):
            if name != file:
                self._folder.remove(name)
        return stored

    def get(self, asset_id: str, owner: str) -> Asset:
        """
        Raises:
            ApiError: the caller has no such asset.
        """
        with self._database.session() as session:
            return self.find(session, asset_id, owner)

    def find(self, session: Session, asset_id: str, owner: str) -> Asset:
        """As `get`, for who has a session: a second one may have to wait for what it holds.

        Raises:
            ApiError: the caller has no such asset.
        """
        asset = session.get(Asset, asset_id) if _ID.fullmatch(asset_id) else None
        if asset is None or asset.owner != owner or asset.expires < time.time():
            raise not_found("asset", asset_id)
        return asset

    def list(self, owner: str, limit: int) -> list[Asset]:
        """The caller's newest, which it may have to choose some of to delete."""
        mine = select(Asset).where(Asset.owner == owner, Asset.expires >= time.time())
        with self._database.session() as session:
            return list(session.scalars(mine.order_by(Asset.created.desc()).limit(limit)))

    def location(self, asset: Asset) -> str:
        """Where its bytes are.

        Raises:
            ApiError: they have not all come yet.
        """
        if not asset.complete:
            raise ApiError(
                409,
                "upload_unfinished",
                f"asset {asset.id} has {asset.received_bytes} bytes so far; finish its upload",
            )
        return self._folder / f"{_place(asset.id)}/file"

    def delete(self, asset: Asset) -> None:
        self._remove(asset.id)

    def remove_expired(self, used: Collection[str] = ()) -> int:
        """Remove what is out of date, or was begun and never finished; how many those were.

        Those of `used` stay: a job that was begun in time still has to read them. Files that a
        killed process was writing go, too, once no upload can be that old.
        """
        self._folder.remove_abandoned(2 * self._limits.upload_timeout_s)
        with self._database.session() as session:
            old = list(session.scalars(select(Asset.id).where(Asset.expires < time.time())))
        removed = [asset_id for asset_id in old if asset_id not in used]
        for asset_id in removed:
            self._remove(asset_id)
        return len(removed)

    def _remove(self, asset_id: str) -> None:
        with self._database.session() as session:
            asset = session.get(Asset, asset_id)
            if asset is not None:
                session.delete(asset)
            session.execute(delete(AssetPart).where(AssetPart.asset_id == asset_id))
        self._folder.remove(_place(asset_id))

    def _parts(self, asset_id: str) -> builtins.list[str]:
        mine = select(AssetPart.name).where(AssetPart.asset_id == asset_id)
        with self._database.session() as session:
            return list(session.scalars(mine.order_by(AssetPart.offset)))


class PartWriter:
    """Counts what is written, and stops where there is more than was announced or is allowed."""

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self._file, self._most_bytes = file, most_bytes
        self.size_bytes = 0
        self.refused = False

    def write(self, data: bytes) -> None:
        if self.size_bytes + len(data) > self._most_bytes:
            self.refused = True
            raise too_large("the file", self._most_bytes)
        self._file.write(data)
        self.size_bytes += len(data)


def _place(asset_id: str) -> str:
    return f"{asset_id[6:8]}/{asset_id}"


def _wrong_offset(asset_id: str, received_bytes: int) -> ApiError:
    return ApiError(
        409, "wrong_offset", f"asset {asset_id} goes on at byte {received_bytes}; ask with HEAD"
    )
