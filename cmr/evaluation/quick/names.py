"""Names and words that the documents of a quick evaluation are made of."""

PLACES = (
    "boat house", "brick kiln", "bell tower", "city archive", "clock shop", "cider press",
    "ferry office", "film vault", "fish market", "garden shed", "glass works", "grain store",
    "harbour office", "ice cellar", "mint house", "music school", "north gate", "observatory",
    "paper mill", "pump station", "rope yard", "salt mine", "seed bank", "wind mill",
)  # fmt: skip
WORDS = (
    "anchor", "apple", "basket", "blanket", "bottle", "bridge", "butter", "button", "candle",
    "carpet", "castle", "cherry", "copper", "corner", "dragon", "engine", "feather", "finger",
    "flower", "forest", "garden", "hammer", "island", "jacket", "kettle", "ladder", "lemon",
    "market", "mirror", "needle", "orange", "pencil", "pepper", "pillow", "pocket", "rabbit",
    "ribbon", "saddle", "silver", "spider", "summer", "ticket", "tunnel", "velvet", "window",
)  # fmt: skip
