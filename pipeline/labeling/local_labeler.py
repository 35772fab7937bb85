"""Label decoded images in this process alone, without Ray, by the functions of a run."""

from dataclasses import replace

import pyarrow as pa
import torch

from wordsworth.pipeline.cluster.cores import cores
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.estimate import plan_here
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.prediction_rows import prediction_table
from wordsworth.pipeline.prediction.actor import Predictor
from wordsworth.pipeline.prediction.gpu import DeviceLost, own_gpus
from wordsworth.pipeline.unit import Unit
from wordsworth.vit_model.checkpoint import BaseCheckpoint

UNIT_ROWS = 32  # images that are decoded and predicted together


class LocalLabeler:
    """Hold a model that is ready, and label units with it: a row here is the row of a run.

    Attributes:
        settings: of the stages of a run.
        predictor: the model.
    """

    def __init__(self, request: LabelRequest, checkpoint: BaseCheckpoint):
        """Load the model.

        Raises:
            UserError: --device cuda, and torch has no GPU here; or the model does not give what is asked for.
        """
        device = "cuda" if request.device == "cuda" or (request.device == "auto" and own_gpus()) else "cpu"
        # A GPU's fastest mode and batch would take longer to find than these images take.
        here = replace(request, unit_rows=UNIT_ROWS, gpu_mode="plain")
        if device == "cuda":
            here = replace(here, batch_size=request.batch_size or UNIT_ROWS)
        _, self.settings = plan_here(here, checkpoint, device)
        try:
            self.predictor = Predictor(checkpoint, self.settings.predict)
        except DeviceLost as lost:
            raise UserError(str(lost)) from lost
        torch.set_num_threads(max(1, int(cores())))  # one model here, where a run has one for each core

    def rows(self, decoded: Unit) -> pa.Table:
        """Return the prediction rows of a decoded unit.

        Raises:
            UserError: the GPU cannot go on.
        """
        predicted = Unit.from_arrow(self.predictor(decoded.to_arrow()))
        return prediction_table(predicted, self.settings.write)
