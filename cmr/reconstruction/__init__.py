"""Making what was recalled fewer, and blending it into what a model thinks at present.

Tensor functions, shared by the attached memory and by the specification's classes:

- `methods`: how well recalled tokens match what asks, and which of them are read.
- `read_plan`: which tokens go into which read token, and with what share.
- `readout`: a weighted sum over memory for every token that reads.
- `blend`: how such a sum enters the states.
"""
