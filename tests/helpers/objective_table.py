"""Every objective of the library, where it applies: one row each, and each kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers as tf
from tiny_models import CASES, Case, _mixtral, _pictured, _resnet, _text
from torch import nn

import hf_distill as hd
from hf_distill import Objective


def _without_batch_norm(config: Any) -> nn.Module:
    """Group normalisation, as batch statistics depend on the batch by definition."""
    model = tf.ResNetForImageClassification(config)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.GroupNorm(1, module.num_features))
    return model


MODELS: dict[str, Case] = {
    "text": CASES["sequence_classification"],
    "cnn": Case(_without_batch_norm, _resnet, {"hidden_sizes": [12, 24]}, _pictured),
    "vit": CASES["image_classification"],
    "causal_lm": CASES["causal_lm"],
    "seq2seq": CASES["seq2seq_lm"],
    "multiple_choice": CASES["multiple_choice"],
    "regression": CASES["regression"],
    "multi_label": CASES["multi_label"],
    "ctc": CASES["ctc"],
    "encoder": CASES["encoder"],
    "experts": Case(tf.MixtralForCausalLM, _mixtral, {"num_hidden_layers": 3}, _text),
}
ALL = ("text", "cnn", "vit", "causal_lm", "seq2seq")
PROBABLE = (*ALL, "multi_label", "ctc")
GAUSSIAN = (*PROBABLE, "regression")
PICTURES = ("cnn", "vit")
HIDDEN = (*ALL, "encoder")
WRITTEN = ("text", "causal_lm", "seq2seq")
EXAMPLES = ("text", *PICTURES)
ATTENDING = ("text", "vit", "causal_lm", "seq2seq")


@dataclass(frozen=True)
class Row:
    """One objective, the models that it applies to, and what holds for it."""

    objective: Objective
    models: tuple[str, ...] = ALL
    zero: bool = True  # value and gradient are 0 where the teacher is the student


ROWS: dict[str, Row] = {
    "hard_labels": Row(hd.HardLabels(), (*PROBABLE, "regression"), zero=False),
    "model_loss": Row(hd.ModelLoss(), (*ALL, "multi_label", "regression"), zero=False),
    "auxiliary_head": Row(hd.AuxiliaryHead("classifier", hd.ForwardKL(2.0)), EXAMPLES),
    "forward_kl": Row(hd.ForwardKL(2.0), GAUSSIAN),
    "reverse_kl": Row(hd.ReverseKL(2.0), GAUSSIAN),
    "jeffreys": Row(hd.Jeffreys(2.0), GAUSSIAN),
    "jensen_shannon": Row(hd.JensenShannon(2.0, 0.3), PROBABLE),
    "skew_kl": Row(hd.SkewKL(2.0), PROBABLE),
    "skew_reverse_kl": Row(hd.SkewReverseKL(2.0), PROBABLE),
    "adaptive_kl": Row(hd.AdaptiveKL(2.0), ALL),
    "total_variation": Row(hd.TotalVariation(2.0), PROBABLE),
    "alpha_beta": Row(hd.AlphaBeta(2.0), PROBABLE),
    "renyi": Row(hd.Renyi(2.0), PROBABLE),
    "soft_cross_entropy": Row(hd.SoftCrossEntropy(2.0), PROBABLE, zero=False),
    "logit_mse": Row(hd.LogitMSE(), GAUSSIAN),
    "logit_standardized_kl": Row(hd.LogitStandardizedKL(3.0), ALL),
    "decoupled_kd": Row(hd.DecoupledKD(2.0, beta=2.0), ALL),
    "nkd": Row(hd.NKD(2.0), ALL, zero=False),
    "dist": Row(hd.Dist(2.0), ALL),
    "top_k_kl": Row(hd.TopKKL(2.0, k=2), ALL),
    "mutual": Row(hd.Mutual(), ALL),
    "prefix_kl": Row(hd.PrefixKL(2.0), ()),  # these take two tokenizers: test_crossing_training.py
    "span_kl": Row(hd.SpanKL(), ()),
    "universal_logit_distance": Row(hd.UniversalLogitDistance(), ()),
    "hard_teacher_labels": Row(hd.HardTeacherLabels(), PROBABLE, zero=False),
    "confidence_weighted_kl": Row(hd.ConfidenceWeightedKL(2.0), ALL),
    "label_agreement": Row(hd.LabelAgreement(), ALL, zero=False),
    "margin": Row(hd.Margin(), ALL),
    "boundary": Row(hd.Boundary(), ALL),
    "probability_mse": Row(hd.ProbabilityMSE(2.0), GAUSSIAN),
    "margin_mse": Row(hd.MarginMSE(), ("multiple_choice", "regression")),
    "hidden_states": Row(hd.HiddenStates(), HIDDEN),
    "hint": Row(hd.Hint(), PICTURES),
    "attention_transfer": Row(hd.AttentionTransfer(), PICTURES),
    "nst": Row(hd.NST(), PICTURES),
    "review_kd": Row(hd.ReviewKD(), PICTURES),
    "activation_boundary": Row(hd.ActivationBoundary(), PICTURES, zero=False),
    "vid": Row(hd.VID(), PICTURES, zero=False),
    "fsp": Row(hd.FSP(), ALL),
    "token_gram": Row(hd.TokenGram(), ALL),
    "early_exits": Row(
        hd.EarlyExits(temperature=2.0, labels=0.5),
        (*PROBABLE, "regression", "multiple_choice"),
        zero=False,
    ),
    "pkd": Row(hd.PKD(), ALL),
    "rkd": Row(hd.RKD(), HIDDEN),
    "similarity_preserving": Row(hd.SimilarityPreserving(), HIDDEN),
    "pkt": Row(hd.PKT(), HIDDEN),
    "correlation_congruence": Row(hd.CorrelationCongruence(), HIDDEN),
    "cka": Row(hd.CKA(), HIDDEN),
    "info_nce": Row(hd.InfoNCE(temperature=0.5), HIDDEN, zero=False),
    "in_batch_similarity": Row(hd.InBatchSimilarity(temperature=0.5), HIDDEN),
    "matryoshka": Row(
        hd.Matryoshka(hd.InBatchSimilarity(temperature=0.5), (4, 16), (1.0, 0.5), cut_teacher=True),
        ("encoder",),
    ),
    "attention_maps": Row(hd.AttentionMaps(distance="kl"), ATTENDING),
    "minilm": Row(hd.MiniLM(), ATTENDING),
    "minilm_v2": Row(hd.MiniLMv2(relation_heads=4), ATTENDING),
    "tinybert": Row(hd.TinyBERT(prediction=0.0), ATTENDING),
    "jacobian": Row(hd.Jacobian("teacher", saliency=True), ("text", "causal_lm", "seq2seq")),
    "on_perturbed": Row(
        hd.OnPerturbed(hd.HardLabels(), hd.PGD(0.1, 2, start="none")),
        (*PROBABLE, "regression"),
        zero=False,
    ),
    "smoothness": Row(hd.Smoothness(hd.TokenNoise(1.0, "mask", 2, keep=(0,))), WRITTEN, zero=False),
    "iad": Row(hd.IAD(hd.PGD(0.1, 2, start="none")), PICTURES, zero=False),
    "free_lb": Row(hd.FreeLB(hd.HardLabels(), 0.1, start="none"), (*PICTURES, "text"), zero=False),
    "group_dro": Row(hd.GroupDRO(hd.ForwardKL(2.0), 3, "labels"), EXAMPLES, zero=False),
    "group_weights": Row(
        hd.GroupWeights(hd.HardLabels(), (2, 1, 3), "labels"), EXAMPLES, zero=False
    ),
    "trusted_labels": Row(hd.TrustedLabels(0.5), (*ALL, "multiple_choice"), zero=False),
    "generalized_cross_entropy": Row(
        hd.GeneralizedCrossEntropy(), (*ALL, "multiple_choice"), zero=False
    ),
    "router_balance": Row(hd.RouterBalance(), ("experts",), zero=False),
    "weight_decay": Row(hd.WeightDecay(0.01), (*ALL, "encoder"), zero=False),
}
"""Name -> row; every objective of the library has one."""

VARIANTS: dict[str, Row] = {
    "hidden_states, emd": Row(hd.HiddenStates("emd"), ("text", "seq2seq"), zero=False),
    "hidden_states, orthogonal": Row(hd.HiddenStates(projection="orthogonal"), ("text", "cnn")),
    "hidden_states, modules": Row(
        hd.HiddenStates("bert.encoder.layer.3:bert.encoder.layer.1"), ("text",), zero=False
    ),
    "hint, modules": Row(hd.Hint("resnet.encoder.stages.1.layers.0.layer.0"), ("cnn",)),
    "attention_maps, scores": Row(hd.AttentionMaps(scores=True), ATTENDING),
    "attention_maps, ce": Row(hd.AttentionMaps(distance="ce"), ("text", "vit"), zero=False),
    "jacobian, pictures": Row(hd.Jacobian(), PICTURES),
    "jacobian, random": Row(hd.Jacobian("random"), (*PICTURES,)),
    "forward_kl, scheduled temperature": Row(
        hd.ForwardKL(hd.Schedule("linear", 4.0, 1.0)), ("text", "causal_lm")
    ),
    "forward_kl, per class": Row(hd.ForwardKL((1.0, 2.0, 3.0)), ("text", "multi_label")),
    "forward_kl, adaptive": Row(
        hd.ForwardKL(hd.AdaptiveTemperature("flsw")), ("text", "causal_lm")
    ),
    "forward_kl, learned": Row(hd.ForwardKL(hd.LearnedTemperature(1.0, 5.0)), ("text",)),
}
"""Settings that take another path through the code."""
