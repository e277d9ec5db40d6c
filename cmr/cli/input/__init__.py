"""What the command line is given: documents, what comes through a pipe, files of models."""
