"""Hold the settings of every stage, made of what the user asks for and of what the run's plan froze."""

import secrets
from dataclasses import dataclass

from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.labeling.head_columns import head_columns
from wordsworth.pipeline.labeling.listing import list_settings
from wordsworth.pipeline.labeling.plan import CLASS_NAMES, decoder_of, has_keys_by_path, key_rule_of
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.labeling.stages import ListSettings
from wordsworth.pipeline.output.prediction_rows import WriteSettings
from wordsworth.pipeline.output.records import Provenance, RunPlan
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.prediction.actor import PredictSettings
from wordsworth.pipeline.sources.kept_columns import output_name, source_name
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.vit_model.checkpoint import BaseCheckpoint

JOB_TOKEN_BYTES = 8  # bytes of the token that tells the files of one command from those of another


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Hold the settings of every stage, in the order of the stages."""

    listing: ListSettings
    read: ReadSettings
    decode: DecodeSettings
    predict: PredictSettings
    write: WriteSettings


def stage_settings(
    folder: RunFolder, plan: RunPlan, request: LabelRequest, checkpoint: BaseCheckpoint
) -> StageSettings:
    """Return the settings of every stage of a run."""
    resolved = plan.resolved
    return StageSettings(
        listing=list_settings(request),
        read=ReadSettings(
            unit_rows=resolved.unit_rows,
            max_bytes=request.limits.max_bytes,
            image_keys=request.image_keys,
            keep=tuple(map(source_name, request.keep)),
            storage_options=request.storage_options,
            image_column=request.image_column,
            key=request.key,
            class_names=bool(plan.asked.get(CLASS_NAMES)),
            keys_by_path=has_keys_by_path(plan, request),
            target=request.target,
            key_rule=key_rule_of(plan),
            include_hidden=request.include_hidden,
        ),
        decode=DecodeSettings(
            preprocessing=checkpoint.preprocessing,
            image_size=checkpoint.config.image_size,
            patch_size=checkpoint.config.patch_size,
            limits=request.limits,
            fast=request.fast_decode,
        ),
        predict=predict_settings(
            request, checkpoint, resolved.device, resolved.precision, resolved.batch_size
        ),
        write=_write_settings(folder, plan, request, checkpoint),
    )


def predict_settings(
    request: LabelRequest, checkpoint: BaseCheckpoint, device: str, precision: str, batch_size: int | None
) -> PredictSettings:
    """Return the settings of a model actor.

    Args:
        batch_size: images in one forward pass; None finds the fastest, on a GPU.
    """
    columns = head_columns(request, checkpoint)
    return PredictSettings(
        precision=precision,
        device=device,
        batch_size=batch_size,
        top_k=columns.top_k,
        head=checkpoint.head.kind,
        threshold=columns.threshold,
        value=columns.value,
        embedding=request.embedding,
        normalize=request.normalize,
    )


def _write_settings(
    folder: RunFolder, plan: RunPlan, request: LabelRequest, checkpoint: BaseCheckpoint
) -> WriteSettings:
    columns = head_columns(request, checkpoint)
    return WriteSettings(
        output=folder.uri,
        provenance=Provenance(
            run_id=plan.run_id,
            fingerprint=plan.fingerprint,
            model=plan.model,
            package_version=plan.package_version,
            schema_version=plan.schema_version,
            preprocessing=checkpoint.preprocessing.to_dict(),
            decoder=decoder_of(request),
            dtype=plan.resolved.precision,
            head=checkpoint.head.kind,
            threshold=columns.threshold,
            commit=plan.commit,
            revision=plan.revision,
        ),
        labels=checkpoint.labels,
        top_k=columns.top_k,
        chosen=columns.threshold is not None,
        value=columns.value,
        embedding=request.embedding,
        width=checkpoint.config.embedding_dim,
        keep=tuple(map(output_name, request.keep)),
        on_error=request.on_error,
        storage_options=request.storage_options,
        job=secrets.token_hex(JOB_TOKEN_BYTES),
    )
