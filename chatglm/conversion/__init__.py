"""Model folders made from model folders: other files, fewer bits. Streamed tensor by tensor."""

from chatglm.conversion.folder import convert_folder

__all__ = ["convert_folder"]
