"""Long names of classes, alike at both ends."""


def long_names(number):
    return [f"Tomato___Disease_number_{i:03}_with_leaf_curl_virus" for i in range(number)]
