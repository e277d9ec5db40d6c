"""The operations as Triton kernels. Imported only where they run: importing needs triton."""
