"""Making what was recalled fewer, and blending it into what a model thinks at present.

Tensor functions, shared by the attached memory and by the specification's classes:

- `matching`: how well each recalled token matches what asks.
- `plan`: which tokens go into which read token, and with what share.
- `methods`: how the plans of the reconstruction methods are made.
- `readout`: a weighted sum over memory for every token that reads.
- `blend`: how such a sum enters the states.
"""
