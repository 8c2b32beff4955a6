"""The direction in which a metric is better, by its name."""

import re

# Short words count as whole words only: "answer_f1" has nothing to do with the word error rate.
_RETAINED = re.compile(r"(^|_)(retained|retention)(_|$)")
_NEITHER = re.compile(
    r"(?<!cross_)(?<!cross)entropy(?!_gap)|per_second|memory|latency|runtime|throughput"
    r"|(?<![a-z])(epochs?|flops|flos|num|params|samples|seconds?|steps?|time)(?![a-z])"
    r"|(?<![a-z])(counts?|len|lengths?|size|std|stderr|support|thresh|threshold|total)$"
)
"""Costs of a run, counts, and figures that are neither good nor bad by themselves."""
_LOWER = re.compile(
    r"loss|perplexity|error|brier|divergence|distance|bits_per|cross_?entropy|entropy_gap"
    r"|false_(alarm|negative|positive)"
    r"|(?<![a-z])(bpb|bpc|cer|ece|eer|fid|fnr|fpr|kl|mae|mape|mce|mer|mse|nll|nrmse|ppl|risk|rmse"
    r"|smape|ter|wer)(?![a-z])"
)
_HIGHER = re.compile(
    r"accuracy|agreement|acceptance|bleu|certainty|correlation|explained_variance|intersection"
    r"|jaccard|loyalty|matthews|precision|recall|rouge|sensitivity|silhouette|similarity"
    r"|specificity|(auc|iou|score|scores)(?![a-z])"
    r"|(?<![a-z])(acc|anls|ap|auroc|chrf|cider|comet|correct|dice|em|exact|f1|f2|fbeta|hits?|kappa"
    r"|kendall|kendalltau|map|mar|mcc|meteor|mrr|ndcg|pass|pearson|pearsonr|psnr|r2|r_squared"
    r"|spearman|spearmanr|spice|ssim|tnr|tpr|win_rate)(?![a-z])"
)


def higher_is_better(metric: str) -> bool | None:
    """Tell whether more of a metric is better, by its name; None where that is not known, or where
    neither is (runtimes, lengths, counts, entropy).

    ``entropy_gap`` is best at 0; it counts as one of which less is better, since students are less
    sure than their teachers. Of ``task/metric,filter`` (`lm_eval`) the metric's name counts alone.

    >>> [higher_is_better(name) for name in ("accuracy", "eval_forward_kl_divergence", "gen_len")]
    [True, False, None]
    """
    name = re.sub(r"[\s.@-]+", "_", metric.rpartition("/")[2].split(",")[0].lower())
    if _RETAINED.search(name):
        return True
    if _NEITHER.search(name):
        return None
    if _LOWER.search(name):
        return False
    return True if _HIGHER.search(name) else None


def lower_is_better(metric: str) -> bool:
    """Tell whether less of a metric is known to be better, see `higher_is_better`."""
    return higher_is_better(metric) is False
