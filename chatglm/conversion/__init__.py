"""Model folders made from model folders: other files, fewer bits. Streamed tensor by tensor or block by block."""

from chatglm.conversion.calibration import Calibration
from chatglm.conversion.evaluation import evaluate
from chatglm.conversion.folder import convert_folder, examined, quantize_folder
from chatglm.conversion.plan import make_plan
from chatglm.conversion.samples import read_samples

__all__ = [
    "Calibration",
    "convert_folder",
    "evaluate",
    "examined",
    "make_plan",
    "quantize_folder",
    "read_samples",
]
