"""The columns of a run file: one row per sample and attack."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 5
METADATA_KEY = b"robustbench_lite"


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


SCHEMA = pa.schema(
    [
        # position in the data set
        _required("index", pa.int64()),
        # SHA-256 of the clean image as float32 NCHW bytes
        _required("content_hash", pa.string()),
        _required("label", pa.int64()),
        # the class aimed at: that of the success, or the last one tried; null where untargeted or not attacked
        pa.field("target", pa.int64()),
        # prediction == label
        _required("correct", pa.bool_()),
        # false for the misclassified and for those that have no possible target
        _required("attacked", pa.bool_()),
        # a verified misclassification (or target reached) inside the threat
        _required("success", pa.bool_()),
        # the number of classes where a defense turned the image away
        _required("prediction", pa.int64()),
        # on the final image; equals prediction where not attacked
        _required("adversarial_prediction", pa.int64()),
        # logit of the label minus the largest other
        _required("margin", pa.float64()),
        _required("adversarial_margin", pa.float64()),
        # of the final image, in input units; null where not attacked
        pa.field("distance_linf", pa.float64()),
        pa.field("distance_l2", pa.float64()),
        pa.field("distance_l1", pa.float64()),
        # number of changed input components (channels count one by one, not pixels)
        pa.field("distance_l0", pa.int64()),
        _required("eps", pa.float64()),
        _required("forwards", pa.int64()),
        _required("backwards", pa.int64()),
        # step and restart of the success
        pa.field("step", pa.int64()),
        pa.field("restart", pa.int64()),
        # of the run
        _required("seed", pa.int64()),
        # a separate float32 pass over the final image confirmed the verdict
        _required("verified", pa.bool_()),
        # SHA-256 of the final image as float32 NCHW bytes
        pa.field("adversarial_hash", pa.string()),
    ]
)

# What a run says about a sample; two runs that agree on these reproduce each other.
VERDICT_COLUMNS = ("index", "content_hash", "label", "prediction", "correct", "success", "adversarial_prediction")

NORMS = ("linf", "l2", "l1", "l0")
