"""What people write first: a FastAPI endpoint of the stock classes, one input at a time. A worker of serving.py."""

import base64
import io
import sys

import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from transformers import SiglipImageProcessor, SiglipModel
from transformers.models.auto.tokenization_auto import AutoTokenizer


folder, port = sys.argv[1], int(sys.argv[2])
model = SiglipModel.from_pretrained(folder).eval()
image_processor, tokenizer = SiglipImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
app = FastAPI()


@app.get("/readyz")
async def readyz() -> str:
    return "ready"


@app.post("/v1/embeddings")
async def embeddings(body: dict) -> dict:
    text = body["input"]
    with torch.inference_mode():
        if text.startswith("data:image/"):
            image = Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).convert("RGB")
            output = model.get_image_features(**image_processor(images=image, return_tensors="pt"))
        else:
            tokens = tokenizer([text], padding="max_length", max_length=64, truncation=True, return_tensors="pt")
            output = model.get_text_features(input_ids=tokens["input_ids"])
    vector = torch.nn.functional.normalize(output.pooler_output, dim=-1)[0]
    return {"data": [{"index": 0, "embedding": vector.tolist()}]}


uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")
