"""The typed tree of a run: every value with its default, its sentence and one owner.

Nothing here imports torch, so that a login node, a SLURM script or a test can read a run in milliseconds.
`git_scale/recipes.py` fills the tree from YAML and the command line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from git_scale.errors import ConfigError
from git_scale.section import MAX_IMAGE_SIZE, MAX_SEED, NonEmptyText, Section, UserPath
from git_scale.upgrades import VERSION, upgraded


class EncoderConfig(Section):
    name: NonEmptyText = "vit_base_patch16_clip_quickgelu_224"
    """Any timm architecture that yields feature tokens or a feature grid."""
    image_size: int = Field(224, ge=8, le=MAX_IMAGE_SIZE)
    """Side of the square input in pixels, for evaluation and (unless data.image_sizes) for training."""
    start: UserPath = "scratch"
    """Where its first weights come from: an encoder's folder or file (tools/convert_checkpoint.py imports one; of a
    whole GIT its encoder is taken), timm (its published weights of that name, downloaded or cached), or scratch. Not
    asked when init_from brings an encoder, nor when a run goes on."""
    position_std: float | None = Field(None, gt=0)
    """Standard deviation of the first values of a ViT's table of positions. None: timm's 0.02, which is small beside
    the embeddings of patches. With 0.5 a ViT that starts from scratch on few images learns sooner: its attention
    tells places apart from the first step on."""
    patch_drop_rate: float = Field(0.0, ge=0, lt=1)
    """Share of a ViT's patches that are left out in training, others of each image and epoch (FLIP, arXiv 2212.00794:
    0.5 or 0.75). Evaluations see all of them."""
    options: dict[str, Any] = Field({})
    """Further keyword arguments of timm.create_model: depths, dims, drop_path_rate, ..."""


class DecoderConfig(Section):
    layers: int = Field(6, ge=1, le=1000)
    width: int = Field(768, ge=8, le=100_000)
    heads: int = Field(12, ge=1, le=100_000)
    attention: Literal["joint", "cross"] = "joint"
    """How the text sees the image. joint, GIT's: one attention over [image; text], whose layers update both. cross:
    attention over the text, then cross-attention to the projected image tokens, which no layer updates."""
    ffn: int = Field(3072, ge=8, le=1_000_000)
    """Width of the feed-forward hidden layer."""
    positions: int = Field(1024, ge=4, le=1_000_000)
    """Length of the learned table of text positions."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On embeddings, attention probabilities and both residual branches."""
    init_std: float = Field(0.02, gt=0)
    """Of the first weights of projection and decoder. 0.02 (BERT) suits a width of 768; narrow ones learn sooner
    with more, up to 1 / sqrt(width)."""
    tied: bool = True
    """The vocabulary head shares the word table. False: for imported weights whose two tables have drifted apart."""


class ModelConfig(Section):
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    vocab_size: int = Field(30522, ge=5, le=10_000_000)
    """Rows of the tied word table; must equal the tokenizer's size. 30522: BERT, uncased."""
    frames: int = Field(1, ge=1, le=1000)
    """Images per sample: 1, or the frames of a clip, each with its learned temporal embedding."""


class SourceConfig(Section):
    path: UserPath
    """Folder of tar shards."""
    weight: float = Field(1.0, gt=0)
    """Its share of the samples, over the sum of all weights."""
    task: NonEmptyText | None = None
    """What is learned from it; none: data.task."""
    heldout: UserPath | None = None
    """Folder of its own held-out tar shards, asked by its task: evaluations log them under the source's name."""


class DataConfig(Section):
    train: UserPath | None = "data/train"
    """Folder of tar shards to train on; none with data.sources."""
    sources: tuple[SourceConfig, ...] = ()
    """Several folders in its place: [{path: data/coco/train, weight: 0.7}, {path: data/vqa/train, task: vqa}]."""
    share: float = Field(1.0, gt=0, le=1)
    """How much of the training data is used, the first samples of each shard: for studies of scaling with data."""
    heldout: UserPath | None = None
    """Folder of tar shards for evaluation, asked by data.task; none: no evaluation but of what sources hold out."""
    tokenizer: UserPath = "data/tokenizer.model"
    """A sentencepiece `.model` or a BERT `vocab.txt`."""
    task: NonEmptyText = "caption"
    """caption, vqa, classification, scene_text, or one that a plugin adds. vqa: questions as prefixes, the loss on
    the answer and the end token; one of the answers is drawn per epoch. classification, scene_text: the caption is
    the name of a class, or the word that the image shows. text_only: text without images."""
    texts_per_image: int = Field(1, ge=1)
    """1: one caption (or question), drawn anew each epoch. K: K of them at once, sharing one image pass."""
    class_names: UserPath | None = None
    """Of classification: a file with a line CLASS<TAB>NAME, or the name alone, for each class (tools/prepare_data.py
    classes writes it)."""
    max_text_tokens: int = Field(40, ge=3)
    """Longest text including begin and end token; longer ones are cut."""
    image_sizes: tuple[int, ...] = ()
    """Multi-scale training: each step draws one of these sides; the paper's is 160..224 in steps of 16."""
    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Share of the image's area that RandomResizedCrop keeps (ratio 1, bicubic)."""
    resize: Literal["crop", "pad", "fit"] = "crop"
    """How an image meets model.encoder.image_size. crop: shorter side to it, then a square (random in training).
    pad: longer side to it, the rest of the square black. fit: shorter side to it unless the longer one would exceed
    data.max_side; no crop, no padding, so that each image has its own shape (needs train.micro_batch=1)."""
    max_side: int | None = Field(None, ge=8, le=2 * MAX_IMAGE_SIZE)
    """Of resize=fit, in pixels; none: 4/3 of the image size (GIT's VQA models: 480 and 640)."""
    max_bad_share: float = Field(0.01, gt=0, le=1)
    """Share of the last 10,000 samples of all ranks that may be unusable, looked at from 1,000 on. A run with more
    ends with a checkpoint and exit code 76; so does one whose first 64 are all unusable. 1: no bound."""
    workers: int = Field(4, ge=0)
    """Loader processes per rank; 0 loads in the training process."""
    sample_timeout_s: float = Field(300, gt=0, le=500)
    """Seconds that reading and decoding one sample may take; then the run ends, to be started again. Below the 10
    minutes that other ranks wait for this one."""

    @model_validator(mode="before")
    @classmethod
    def _sources_in_the_place_of_train(cls, value: Any) -> Any:
        """The default of data.train is for a run without data.sources."""
        return {"train": None, **value} if isinstance(value, dict) and "sources" in value else value


class OptimizerConfig(Section):
    encoder_lr: float = Field(1e-5, gt=0)
    decoder_lr: float = Field(5e-5, gt=0)
    """For everything but the image encoder: projection, decoder, word table (the paper's factor 5)."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    """On matrices only; norms and biases have none."""
    clip_norm: float = Field(1.0, gt=0)
    """Bound of the global gradient norm."""
    warmup_steps: int = Field(500, ge=0)
    """Linear rise to the full rate."""
    schedule: NonEmptyText = "cosine"
    """What follows. cosine: to 0 at train.steps. wsd: stable, then to 0 over the last decay_steps, which can be begun
    from any checkpoint of the stable part (continue_from). constant. Or one that a plugin adds."""
    decay_steps: int | None = Field(None, ge=1)
    """Of wsd: so many steps at the end, over which the rate falls; 10 to 20 % of the run are usual."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, such as 0.9999: kept in fp32 beside them, 4 bytes per
    parameter, sharded as the optimizer's states. None: no average."""


def with_objectives(train: dict[str, Any]) -> dict[str, Any]:
    """The section with `objectives` in the place of the short `objective`. Raises ValueError where both are given."""
    if "objective" not in train:
        return train
    if "objectives" in train:
        raise ValueError(
            f"objective={train['objective']!r} is short for objectives, which is given too: set"
            f" objectives={{{train['objective']}: 1.0}} in their place"
        )
    others = {key: value for key, value in train.items() if key != "objective"}
    return {**others, "objectives": {train["objective"]: 1.0}}


class TrainConfig(Section):
    steps: int = Field(10_000, ge=1)
    """Optimizer steps of the whole run."""
    global_batch: int = Field(4096, ge=1)
    """Images per optimizer step over all ranks."""
    micro_batch: int = Field(32, ge=1)
    """Images per rank and forward pass; accumulation is derived, never set."""
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_precision: Literal["fp32", "bf16"] = "fp32"
    """In which a bf16 run adds up gradients over micro-batches and ranks. bf16 rounds at each addition: 0.4 % of the
    gradient with 8 micro-batches on 2 ranks, 2 % on 512; it saves 2 bytes per gradient kept and half the traffic."""
    objectives: dict[NonEmptyText, Annotated[float, Field(gt=0)]] = Field({"lm": 1.0})
    """What is learned, each with its weight in the loss. lm: the paper's, every word from the image and the words
    before it. masked_lm: 15 % of the words from the image and the others. `train.objective=NAME` is short for one of
    weight 1."""
    parallel_share: float = Field(0.0, ge=0, le=1)
    """Share of the captions of which lm learns all words at once from the image alone, reading only mask tokens: the
    parallel prediction of CapPa (arXiv 2306.07915), there 0.75. Answers to questions never are among them."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    freeze: tuple[NonEmptyText, ...] = ()
    """Patterns of parameter names that do not learn: `encoder.*`, `*.positions.*`."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: about a third more compute, far less memory."""
    compile: bool = False
    """torch.compile, block by block, in training: fewer and larger kernels, up to a minute at the start. With
    ZeRO 0-2 and without tensor parallelism; needs a C++ compiler on CPU."""

    @model_validator(mode="before")
    @classmethod
    def _short_objective(cls, value: Any) -> Any:
        return with_objectives(value) if isinstance(value, dict) else value


class ParallelConfig(Section):
    tp: int = Field(1, ge=1)
    """Tensor-parallel degree: so many neighbouring ranks share one copy of the model and read the same batch. Keep a
    group within a node: it exchanges activations several times per block."""
    encoder: bool = True
    """Split the image encoder; false: whole on each rank of a group (for encoders that no table of rules knows)."""
    decoder: bool = True
    """Split the text decoder with its vocabulary."""
    sequence: bool = False
    """Sequence parallelism: what lies between split layers is divided over a group as well, by images, in training.
    Activations take less memory and ranks exchange a little more; tp must divide train.micro_batch."""


class EvalConfig(Section):
    every: int = Field(1000, ge=1)
    """Steps between evaluations; one more runs at the end."""
    images: int = Field(1024, ge=1)
    """Held-out images per evaluation that texts are generated for (the first ones, in shard order). The held-out loss
    is that of as many, or of 256 where those are fewer."""
    pictures: int = Field(16, ge=0)
    """Of those, how many are shown with reference and generated caption."""
    max_new_tokens: int = Field(40, ge=1)
    beams: int = Field(1, ge=1)
    """1: greedy. The paper's captions come from 4."""
    on_training_data: bool = False
    """Allow held-out data to be trained on, as when a few samples are overfitted on purpose; else that is refused."""
    length_penalty: float = Field(0.6, ge=0)
    """Exponent of the length in a beam's score; see git_scale/inference/decoding.py."""
    weights: Literal["trained", "ema"] = "trained"
    """Of which weights the evaluations in training are, and with them checkpoint.best; ema: the average."""
    submission: NonEmptyText | None = None
    """The file for a benchmark's server that tools/evaluate.py writes beside its results: coco, captions, vqa,
    vizwiz_vqa, vatex, tvc or imagenet (docs/tasks.md)."""


class CheckpointConfig(Section):
    every: int = Field(1000, ge=1)
    """Steps between checkpoints; one more is written at the end."""
    keep: int = Field(2, ge=2)
    """Newest checkpoints to keep. At least 2: the last one may be the one that turns out damaged."""
    best: NonEmptyText | None = None
    """Metric whose best checkpoint is kept as well, under checkpoints/best: loss, or one of the task's (exact_match,
    cider, vqa_accuracy, ...), of data.heldout; NAME/METRIC (coco/train/cider): of what that source holds out. Of
    equal values the one with the lower held-out loss is kept, then the later one."""


class LogConfig(Section):
    every: int = Field(10, ge=1)
    """Steps between console lines and TensorBoard points."""


class RunConfig(Section):
    version: int = VERSION
    """Of the recipe's format (git_scale/upgrades.py); a recipe of an earlier one is brought to this one. None: 1."""
    run_dir: UserPath = "runs/git"
    """Everything a run writes: config.yaml, checkpoints/, tensorboard/, metrics.jsonl, pictures/."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    init_from: UserPath | None = None
    """Where the first weights come from: a checkpoint or run of git_scale, a Hugging Face or Microsoft GIT, or an
    imported image encoder. None: random. A run that goes on takes its own checkpoint."""
    continue_from: UserPath | None = None
    """A checkpoint, or a run, of the same run in another folder: all of its state is taken, weights, optimizer and
    position in the data, to go on from its stable part (optimizer.schedule) with another end. None: from step 0."""
    plugins: tuple[NonEmptyText, ...] = ()
    """Modules of your own that add tasks, objectives, ... by name, from PYTHONPATH or the working directory; they
    are imported before the run is read."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, value: Any) -> Any:
        return upgraded(value)[0] if isinstance(value, dict) else value

    @property
    def train_image_sizes(self) -> tuple[int, ...]:
        return self.data.image_sizes or (self.model.encoder.image_size,)

    def accumulation(self, dp: int) -> int:
        """Micro-batches per step and rank, for `dp` data-parallel ranks."""
        return self.train.global_batch // (self.train.micro_batch * dp)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def check_world(run: RunConfig, dp: int) -> None:
    """Raises ConfigError when the batch does not divide over `dp` data-parallel ranks."""
    train = run.train
    if train.global_batch % (train.micro_batch * dp):
        per_pass = train.micro_batch * dp
        nearest = max(1, round(train.global_batch / per_pass)) * per_pass
        raise ConfigError(
            [
                f"train.global_batch={train.global_batch} is no multiple of train.micro_batch={train.micro_batch}"
                f" x {dp} ranks = {per_pass}: set train.global_batch={nearest} or another train.micro_batch"
            ]
        )
