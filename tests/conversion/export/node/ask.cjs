// node ask.cjs INSTALLED QUESTION ANSWER: what transformers.js makes of a folder's texts and images, as JSON.
const fs = require("fs");
const path = require("path");
const { createRequire } = require("module");

const [installed, question, answer] = process.argv.slice(2);
const installedRequire = createRequire(path.join(installed, "package.json"));
const { AutoProcessor, AutoTokenizer, RawImage, SiglipModel, SiglipTextModel, SiglipVisionModel, env, pipeline } =
  installedRequire("@huggingface/transformers");
env.allowRemoteModels = false;
env.localModelPath = "/";

const lists = (tensor) => tensor.tolist();
const image = ({ data, width, height }) => new RawImage(Uint8ClampedArray.from(data), width, height, 3);

const asks = {
  async tokens({ folder, texts }) {
    const tokenizer = await AutoTokenizer.from_pretrained(folder);
    return texts.map((text) => tokenizer(text, { return_tensor: false }).input_ids);
  },
  async vectors({ folder, texts, images, dtype }) {
    const [tokenizer, processor] = [
      await AutoTokenizer.from_pretrained(folder),
      await AutoProcessor.from_pretrained(folder),
    ];
    const ids = tokenizer(texts, { padding: "max_length", truncation: true });
    const pixels = await processor(images.map(image));
    const options = { dtype, device: "cpu" };
    const text = await (await SiglipTextModel.from_pretrained(folder, options))(ids);
    const vision = await (await SiglipVisionModel.from_pretrained(folder, options))(pixels);
    const dual = await (await SiglipModel.from_pretrained(folder, options))({ ...ids, ...pixels });
    const classify = await pipeline("zero-shot-image-classification", folder, options);
    return {
      ids: lists(ids.input_ids).map((row) => row.map(Number)),
      pixels: lists(pixels.pixel_values),
      text: lists(text.pooler_output),
      image: lists(vision.pooler_output),
      logits: lists(dual.logits_per_image),
      scores: await classify(image(images[0]), texts, { hypothesis_template: "{}" }),
    };
  },
  async wasm({ file, pixels, shape }) {
    const ort = installedRequire("onnxruntime-web");
    ort.env.wasm.numThreads = 1;
    const session = await ort.InferenceSession.create(fs.readFileSync(file), { executionProviders: ["wasm"] });
    const found = await session.run({ pixel_values: new ort.Tensor("float32", Float32Array.from(pixels), shape) });
    return Array.from(found.image_embeds.data);
  },
};

const { ask, ...about } = JSON.parse(fs.readFileSync(question, "utf8"));
asks[ask](about).then((found) => {
  fs.writeFileSync(answer, JSON.stringify(found));
  process.exit(0);
});
