"""What the Hub calls the tasks that figures are of, and what a reader calls them."""

CONTRASTIVE, CLASSIFICATION = "zero-shot-image-classification", "image-classification"
TASKS = {
    "zero-shot": (CONTRASTIVE, "Zero-shot classification"),
    "retrieval": (CONTRASTIVE, "Image-text retrieval"),
    "multilingual-retrieval": (CONTRASTIVE, "Image-text retrieval, mean over languages"),
    "few-shot": (CLASSIFICATION, "Few-shot classification"),
    "linear-probe": (CLASSIFICATION, "Linear probe"),
    "knn": (CLASSIFICATION, "k nearest neighbours"),
    "threshold": (CONTRASTIVE, "Matching of images and texts"),
}
