"""What Sixfold loads in every process: it names things, and imports nothing heavy."""

import msgspec

from sixfold.core import Api, Family, Plugin, Probe


class Texts(msgspec.Struct, frozen=True):
    """What goes to the model."""

    texts: list[str]


class Labels(msgspec.Struct, frozen=True):
    """What comes back: for each text the probability of each label."""

    rows: list[dict[str, float]]


FAMILY = Family(
    name="classify/transformers",
    summary="One of several labels for each text, by encoders of transformers such as BERT and RoBERTa.",
    operations=frozenset({"classify"}),
    loader="sixfold_classify.model:Classifier",
    input_type=Texts,
    output_type=Labels,
    # Below what the embedding plugin says of cross-encoders, which have one label.
    detect=lambda files: 70 if "ForSequenceC" in str(files.json("config.json").get("architectures")) else 0,
    batch_tolerance=1e-5,
)
PROBE = Probe(operation="classify", path="/v1/classify", make_body=lambda m, n: {"model": m, "input": ["so " * n]})
PLUGIN = Plugin(families=[FAMILY], apis=[Api(modality="classify", factory="sixfold_classify.api:API", probes=(PROBE,))])
