"""From chosen blocks to a layer's attention."""
