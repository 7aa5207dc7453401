"""The papers' equations in plain loops: slow, in float64, written from the text of the papers.

This file is our reading of the papers. It imports nothing of ours and vectorizes nothing; the tests
compare the fast code with it. Arrays are numpy's; indices are loops.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def matrix_times(matrix: Array, vector: Array) -> Array:
    out = np.zeros(len(matrix))
    for row in range(len(matrix)):
        for column in range(len(vector)):
            out[row] += matrix[row, column] * vector[column]
    return out


def layer_norm(vector: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    mean = sum(vector) / len(vector)
    variance = sum((value - mean) ** 2 for value in vector) / len(vector)
    out = np.zeros(len(vector))
    for i, value in enumerate(vector):
        out[i] = weight[i] * (value - mean) / math.sqrt(variance + eps) + bias[i]
    return out


def batch_norm(rows: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Batch normalization in training: each column by the mean and variance of its rows."""
    out = np.zeros(rows.shape)
    for column in range(rows.shape[1]):
        values = rows[:, column]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        for row, value in enumerate(values):
            normed = (value - mean) / math.sqrt(variance + eps)
            out[row, column] = weight[column] * normed + bias[column]
    return out


def cosine(one: Array, other: Array) -> float:
    dot = sum(float(a) * float(b) for a, b in zip(one, other, strict=True))
    norms = [math.sqrt(sum(float(a) ** 2 for a in vector)) for vector in (one, other)]
    return dot / (norms[0] * norms[1])


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(logit - max(logits)) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


# --------------------------------------------------------------------------------------- FED


def fed_part_pooling(tokens: Array, rows: int, columns: int, num_parts: int) -> Array:
    """Sec. 3: N local features. ``tokens`` (T, C) in raster order; each stripe's mean."""
    rows_per_part = rows // num_parts
    parts = np.zeros((num_parts, tokens.shape[1]))
    for row in range(rows):
        for column in range(columns):
            for channel in range(tokens.shape[1]):
                parts[row // rows_per_part, channel] += tokens[row * columns + column, channel]
    return parts / (rows_per_part * columns)


def fed_erasing(parts: Array, scorers: list[dict[str, Array]]) -> tuple[Array, Array]:
    """Eq. 1: ``f'_i = Sigmoid(W_rg LN(W_cp f_i)) * f_i``; returns the scores and f' (P, C)."""
    scores, erased = np.zeros(len(parts)), np.zeros(parts.shape)
    for i, part in enumerate(parts):
        own = scorers[i]
        compressed = matrix_times(own["cp"], part) + own["cp_bias"]
        normed = layer_norm(compressed, own["norm"], own["norm_bias"])
        logit = matrix_times(own["rg"], normed)[0] + own["rg_bias"][0]
        scores[i] = 1 / (1 + math.exp(-logit))
        for channel in range(len(part)):
            erased[i, channel] = scores[i] * part[channel]
    return scores, erased


def fed_visibility_loss(scores: Array, masks: Array) -> float:
    """Eq. 2: the mean square error over the N parts; mean over images."""
    total = 0.0
    for image in range(len(scores)):
        of_image = 0.0
        for part in range(scores.shape[1]):
            of_image += (scores[image, part] - masks[image, part]) ** 2
        total += of_image / scores.shape[1]
    return total / len(scores)


def fed_memory_update(centres: Array, features: Array, identities: list[int], m: float) -> Array:
    """Eq. 3: ``c_k = m c_k + (1 - m) / |B_k| * sum of f' in B_k``, for k in the mini-batch."""
    updated = centres.copy()
    for k in range(len(centres)):
        batch_of_k = [f for f, identity in zip(features, identities, strict=True) if identity == k]
        if not batch_of_k:
            continue
        for d in range(centres.shape[1]):
            mean = sum(float(f[d]) for f in batch_of_k) / len(batch_of_k)
            updated[k, d] = m * centres[k, d] + (1 - m) * mean
    return updated


def fed_memory_search(feature: Array, centres: Array, identity: int, number: int) -> list[int]:
    """Sec. 3.2: the K nearest centres by cosine, of identities other than the image's."""
    others = [k for k in range(len(centres)) if k != identity]
    others.sort(key=lambda k: -cosine(feature, centres[k]))
    return others[:number]


def fed_attention(
    feature: Array, nearest: Array, weights: dict[str, Array], num_heads: int, scale: float
) -> Array:
    """Eq. 4-6 for one image, by head: the heads split each vector into equal runs.

    ``weights``: query, key, value and output, each (D, D), applied as ``W f``.
    """
    size = len(feature) // num_heads
    q = matrix_times(weights["query"], feature)
    keys = [matrix_times(weights["key"], centre) for centre in nearest]
    values = [matrix_times(weights["value"], centre) for centre in nearest]
    mixed = np.zeros(len(feature))
    for head in range(num_heads):
        own = range(head * size, (head + 1) * size)
        if len(nearest) == 0:
            continue
        beta = [scale * sum(q[d] * key[d] for d in own) for key in keys]
        for share, value in zip(softmax(beta), values, strict=True):
            for d in own:
                mixed[d] += share * value[d]
    return matrix_times(weights["output"], mixed)


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def fed_ffn(part: Array, weights: dict[str, Array]) -> Array:
    """FFN_1, FFN_2: two linear layers, one activation, residual before the layer norm (post)."""
    hidden = matrix_times(weights["first"], part) + weights["first_bias"]
    hidden = np.array([gelu(value) for value in hidden])
    out = matrix_times(weights["second"], hidden) + weights["second_bias"]
    return layer_norm(part + out, weights["norm"], weights["norm_bias"])


def fed_diffusion(
    attended: Array,
    feature: Array,
    scores: Array,
    first: dict[str, Array],
    second: dict[str, Array],
) -> Array:
    """Eq. 7 for one image: ``f'_d = FFN_2(mask * FFN_1(f_d) + f')``; parts are runs of D."""
    size = len(feature) // len(scores)
    out = np.zeros(len(feature))
    for i, score in enumerate(scores):
        own = slice(i * size, (i + 1) * size)
        out[own] = fed_ffn(score * fed_ffn(attended[own], first) + feature[own], second)
    return out


def cross_entropy(logits: Array, labels: list[int]) -> float:
    """Eq. 8: ``-log softmax`` at the label; mean over images."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        total += -math.log(softmax([float(logit) for logit in row])[label])
    return total / len(logits)


def fed_contrast(features: Array, centres: Array, identities: list[int], tau: float) -> float:
    """Eq. 9: ``<f, c>`` is the inner product of unit vectors; mean over images."""
    logits = np.zeros((len(features), len(centres)))
    for image in range(len(features)):
        for k in range(len(centres)):
            logits[image, k] = cosine(features[image], centres[k]) / tau
    return cross_entropy(logits, identities)


def fed_total(visibility: list[float], identity: list[float], contrast: list[float]) -> float:
    """Eq. 10 over 2, 6 and 4 terms."""
    return 0.5 * sum(visibility) + 0.5 * sum(identity) + 0.5 * sum(contrast)


# ------------------------------------------------------------------------------------- AONet


def aonet_phi(pattern: Array, pixel: Array) -> float:
    """Sec. 3.2: ``phi(i_k, F(w, h)) = exp(i_k^T F(w, h))``."""
    return math.exp(sum(float(i) * float(f) for i, f in zip(pattern, pixel, strict=True)))


def aonet_standard_map(pattern: Array, features: Array) -> Array:
    """Eq. 2 for one landmark and one image: responses over their sum. ``features`` (C, H, W)."""
    height, width = features.shape[1:]
    out, total = np.zeros((height, width)), 0.0
    for h in range(height):
        for w in range(width):
            out[h, w] = aonet_phi(pattern, features[:, h, w])
            total += out[h, w]
    return out / total


def aonet_referenced_map(pattern: Array, features: Array, memory: Array) -> Array:
    """Eq. 3, steps 3 to 7 of Algorithm 1: normalize with the average response, then drop it."""
    height, width = features.shape[1:]
    average = aonet_phi(pattern, memory)  # step 4
    augmented = [  # step 5
        aonet_phi(pattern, features[:, h, w]) for h in range(height) for w in range(width)
    ] + [average]
    normalized = [value / sum(augmented) for value in augmented]  # step 6
    return np.array(normalized[:-1]).reshape(height, width)  # step 7


def aonet_feature(features: Array, response_map: Array) -> Array:
    """Sec. 3.2 and 3.4: ``f_k = F R_k``."""
    out = np.zeros(len(features))
    for c in range(len(features)):
        for h in range(response_map.shape[0]):
            for w in range(response_map.shape[1]):
                out[c] += features[c, h, w] * response_map[h, w]
    return out


def aonet_binarized(response_map: Array) -> Array:
    """Sec. 3.1: 1 at the maximum, 0 elsewhere."""
    out = np.zeros(response_map.shape)
    for pixel, value in np.ndenumerate(response_map):
        out[pixel] = 1.0 if value == response_map.max() else 0.0
    return out


def aonet_algorithm_1(
    batch: Array, patterns: Array, memory: Array, alpha: float
) -> tuple[Array, Array, Array, Array]:
    """One pass of Algorithm 1's loop, with Eq. 1, 3 and 4.

    ``batch`` (B, C, H, W), ``patterns`` and ``memory`` (K, C). Returns the awareness scores beta
    (B, K), the referenced maps (B, K, H, W), the OA features (B, K, C) and the updated memory.
    """
    images, landmarks, channels = len(batch), len(patterns), patterns.shape[1]
    beta = np.zeros((images, landmarks))
    maps = np.zeros((images, landmarks, *batch.shape[2:]))
    features = np.zeros((images, landmarks, channels))
    updated = np.zeros(memory.shape)
    for k in range(landmarks):
        peaks = np.zeros(channels)
        for b in range(images):
            maps[b, k] = aonet_referenced_map(patterns[k], batch[b], memory[k])
            for value in maps[b, k].flatten():  # step 8, Eq. 4
                beta[b, k] += value
            features[b, k] = aonet_feature(batch[b], maps[b, k])  # step 9
            peaks += aonet_feature(batch[b], aonet_binarized(maps[b, k]))  # step 10
        updated[k] = alpha * memory[k] + (1 - alpha) * peaks / images  # step 11, Eq. 1
    return beta, maps, features, updated


def aonet_attention(landmarks: Array, weights: dict[str, Array], gate: float) -> Array:
    """The block over one image's landmarks (K, C), as in SAGAN: ``f_i + gate * sum_j s_ij v_j``."""
    queries, keys, values = (
        [matrix_times(weights[name], f) + weights[f"{name}_bias"] for f in landmarks]
        for name in ("query", "key", "value")
    )
    out = landmarks.copy()
    for i, query in enumerate(queries):
        shares = softmax([float(np.dot(query, key)) for key in keys])
        for share, value in zip(shares, values, strict=True):
            out[i] += gate * share * value
    return out


def aonet_identity(logits: Array, labels: list[int], beta: Array) -> float:
    """One of the two sums of Eq. 5, ``-(1/K) sum_k beta_k log p_k``; mean over images."""
    images, landmarks = beta.shape
    total = 0.0
    for b in range(images):
        for k in range(landmarks):
            total += beta[b, k] * cross_entropy(logits[b, k : k + 1], labels[b : b + 1]) / landmarks
    return total / images


def aonet_landmark_logits(features: Array, weights: Array) -> Array:
    """One classifier per landmark: ``features`` (B, K, C), ``weights`` (I, K, C) -> (B, K, I)."""
    images, landmarks = features.shape[:2]
    out = np.zeros((images, landmarks, len(weights)))
    for b in range(images):
        for k in range(landmarks):
            out[b, k] = matrix_times(weights[:, k], features[b, k])
    return out


def aonet_orthogonal(features: Array, *, summed: bool = False) -> float:
    """Eq. 6 of ``features`` (B, K, C); mean or sum over images. The first sum runs to K, not k."""
    images, landmarks = features.shape[:2]
    total = 0.0
    for b in range(images):
        for i in range(landmarks):
            for j in range(i + 1, landmarks):
                ramp = max(0.0, cosine(features[b, i], features[b, j]))
                total -= math.log(1 - ramp) / landmarks**2
    return total if summed else total / images


def aonet_overlap(maps: Array) -> float:
    """Base_RegL: ``1 - (1/K) sum_wh max_k R_k(w, h)``; mean over images."""
    total = 0.0
    for of_image in maps:
        highest = 0.0
        for h in range(maps.shape[2]):
            for w in range(maps.shape[3]):
                highest += max(float(response) for response in of_image[:, h, w])
        total += 1 - highest / len(of_image)
    return total / len(maps)


def aonet_total(before: float, after: float, orthogonal: float, lambda_ot: float) -> float:
    """Eq. 7, with the two sums of Eq. 5."""
    return (before + after) + lambda_ot * orthogonal


def aonet_similarity(features: tuple[Array, Array], beta: tuple[Array, Array]) -> float:
    """Eq. 8 of two images: ``(1/K) sum_k beta1_k beta2_k cosine(f1_k, f2_k)``, each f (K, C)."""
    landmarks = len(beta[0])
    total = 0.0
    for k in range(landmarks):
        total += beta[0][k] * beta[1][k] * cosine(features[0][k], features[1][k])
    return total / landmarks


# --------------------------------------------------------------- similarity of parts (PGFA, VPM)


def part_similarity(
    features: tuple[Array, Array], visibility: tuple[Array, Array], metric: str
) -> float:
    """Two images' parts, each (P, C): ``dot`` is Eq. 8 of AONet, see ``modeling/similarity.py``."""
    total = weights = 0.0
    for k in range(len(features[0])):
        own, others = float(visibility[0][k]), float(visibility[1][k])
        weight = own if metric == "query" else own * others
        total += weight * cosine(features[0][k], features[1][k])
        weights += weight if metric == "shared" else 1
    return total / weights
