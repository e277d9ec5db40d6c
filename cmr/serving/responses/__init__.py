"""`/v1/responses`, the part of OpenAI's Responses API that a chat needs."""
