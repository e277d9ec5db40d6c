"""What memory is compared with: text retrievers over passages of the same size."""
