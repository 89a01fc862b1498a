"""The only place where a shape changes: edits are plain data, `operate_` carries them out."""

from compressor.surgery.edits import Edit, Insert, Merge, Plan, Prune
from compressor.surgery.operate import operate_

__all__ = ["Edit", "Insert", "Merge", "Plan", "Prune", "operate_"]
