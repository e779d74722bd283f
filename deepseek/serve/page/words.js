// The page's words in English and Chinese, and which of the two is spoken. Elements name their words by data-text
// (content), data-label (aria-label) and data-hint (placeholder), so that a change of language reaches all of them.

export const WORDS = {
  en: {
    pages: "Pages", try: "Try", dashboard: "Dashboard", model: "Model", version: "Version", anyVersion: "by share",
    key: "API key", useKey: "Use", keyHelp: "This server asks for one. It is kept in this tab only.",
    settings: "Settings", command: "The same request in code", codeIn: "Language of the code", copy: "Copy", copied: "Copied",
    mode: "Mode", text: "Continue a text", chat: "Chat", clear: "Clear", prompt: "Your text", send: "Send", stop: "Stop",
    system: "System message", stops: "Stop at this text", seed: "Seed", seedHint: "another answer each time",
    temperature: "Temperature", temperatureHelp: "0 always takes the likeliest token",
    top_p: "Top-p", top_pHelp: "only the likeliest tokens that make up this share",
    top_k: "Top-k", top_kHelp: "only this many of the likeliest tokens; 0: all",
    repetition_penalty: "Repetition penalty", repetition_penaltyHelp: "above 1: repeats itself less",
    max_tokens: "Longest answer", max_tokensHelp: "in tokens; text and answer must fit the model", auto: "up to 256", off: "off",
    emptyText: "Write the beginning of a text; the model continues it.", emptyChat: "Ask something; the model answers.",
    you: "You", answer: "Model", waiting: "waiting for the first token …",
    numbers: (first, tokens, rate) => `first token ${first} ms · ${tokens} tokens · ${rate} tokens/s`,
    cut: "cut at the longest answer", stopped: "stopped",
    unreachable: "The server can't be reached. Is it still running?", refused: "This server needs an API key, or the key is wrong.",
    busy: "The server is busy. Try again in a moment.", unready: "Not ready yet. Try again in a moment.",
    tooLong: "This is longer than the model can read.", badSeed: "The seed must be a whole number, 0 or more.",
    noModels: "No model is served yet.", other: "中文", otherLang: "zh",
    input: "Input", run: "Run", running: "running …", result: "Result", example: "Use an example", raw: "The answer as JSON",
    took: (ms) => `answered in ${ms} ms`, notYet: "The answer appears here.",
    image: "Picture", imageHelp: "Drop a picture here, paste it, or choose a file.", choose: "Choose a file", chosen: "Your picture",
    audio: "Sound", audioHelp: "Choose a WAV file, or record yourself.", record: "Record", stopRecording: "Stop recording",
    listen: "Speak live", stopListening: "Stop", live: "Live text", listening: (s) => `listening · ${s} s`, factor: (f) => `real-time factor ${f}`,
    noMicrophone: "The microphone can't be used here. Browsers ask for https or localhost, and for your consent.",
    volume: "Volume", volumeHelp: "Choose an NPY or NIfTI file.", row: "Row", rowMissing: "missing",
    tensors: "Instance as JSON", badJson: "This is not JSON:", nothingChosen: "Choose a file first.", tooBig: "The example is too long to show here; it is sent whole.",
    typed: "Text", opacity: "Opacity of the mask", found: (n) => `${n} found`, nothing: "Nothing was found.",
    takes: { text: "text", image: "picture", audio: "sound", volume: "volume", row: "table row", tensors: "tensors", texts: "texts, pictures, sounds", atoms: "atoms", label: "label" },
    gives: { classes: "classes", values: "values", boxes: "boxes", mask: "mask", text: "text", tokens: "tokens", vectors: "vectors", energies: "energies", image: "picture", tensors: "tensors" },
    textModel: "language model",
    energy: "Energy", download: "Download",
    throughput: "Throughput", latency: "Latency", queue: "Queue", memory: "Memory", tokens: "Tokens", batch: "Batch size", speech: "Live speech", streams: "streams", realTime: "real-time factor",
    perSecond: "requests/s", refusedRate: "failed/s", limitedRate: "over a limit/s", ms: "ms", waitingNow: "waiting", activeNow: "running", mb: "MB", tokensPerSecond: "tokens/s", rows: "rows a run",
    lastMinutes: "5 min ago", now: "now", collecting: "collecting …", models: "Models", state: "State", answered: "Answered", waitingColumn: "Waiting", kindColumn: "Kind",
    pause: "Pause", resume: "Resume",
    dashboardHelp: "Of the process that answers this page, every 2 seconds; kept in this tab only.",
    states: { ready: "ready", loading: "loading", checking: "checking", failed: "failed", unloading: "unloading", unloaded: "unloaded" },
  },
  zh: {
    pages: "页面", try: "试用", dashboard: "监控", model: "模型", version: "版本", anyVersion: "按权重",
    key: "API 密钥", useKey: "使用", keyHelp: "此服务器需要密钥。密钥只保存在本标签页中。",
    settings: "设置", command: "用代码发送同样的请求", codeIn: "代码语言", copy: "复制", copied: "已复制",
    mode: "方式", text: "续写", chat: "对话", clear: "清空", prompt: "您的文字", send: "发送", stop: "停止",
    system: "系统消息", stops: "遇到此文字即停止", seed: "随机种子", seedHint: "留空则每次不同",
    temperature: "温度", temperatureHelp: "0 表示总是选取概率最高的词元",
    top_p: "Top-p", top_pHelp: "只在累计概率达到该值的词元中选取",
    top_k: "Top-k", top_kHelp: "只在概率最高的若干词元中选取;0 表示全部",
    repetition_penalty: "重复惩罚", repetition_penaltyHelp: "大于 1 时减少重复",
    max_tokens: "最长回答", max_tokensHelp: "以词元计;文字与回答合计须在模型容量之内", auto: "最多 256", off: "关",
    emptyText: "写下一段文字的开头,模型会续写。", emptyChat: "提一个问题,模型会回答。",
    you: "您", answer: "模型", waiting: "等待第一个词元……",
    numbers: (first, tokens, rate) => `首词元 ${first} 毫秒 · ${tokens} 个词元 · ${rate} 词元/秒`,
    cut: "已达最长回答", stopped: "已停止",
    unreachable: "无法连接服务器。它还在运行吗?", refused: "此服务器需要 API 密钥,或密钥不正确。",
    busy: "服务器繁忙,请稍后再试。", unready: "尚未就绪,请稍后再试。",
    tooLong: "内容超出了模型能读取的长度。", badSeed: "随机种子必须是不小于 0 的整数。",
    noModels: "尚无可用的模型。", other: "English", otherLang: "en",
    input: "输入", run: "运行", running: "运行中……", result: "结果", example: "使用示例", raw: "JSON 格式的回答",
    took: (ms) => `用时 ${ms} 毫秒`, notYet: "回答将显示在这里。",
    image: "图片", imageHelp: "将图片拖到此处、粘贴,或选择文件。", choose: "选择文件", chosen: "您的图片",
    audio: "声音", audioHelp: "选择 WAV 文件,或录音。", record: "录音", stopRecording: "停止录音",
    listen: "实时识别", stopListening: "停止", live: "实时文字", listening: (s) => `正在聆听 · ${s} 秒`, factor: (f) => `实时率 ${f}`,
    noMicrophone: "无法使用麦克风。浏览器要求 https 或 localhost,并需要您的许可。",
    volume: "体数据", volumeHelp: "选择 NPY 或 NIfTI 文件。", row: "一行数据", rowMissing: "缺失",
    tensors: "JSON 格式的实例", badJson: "这不是 JSON:", nothingChosen: "请先选择文件。", tooBig: "示例过长,不在此显示;发送时是完整的。",
    typed: "文字", opacity: "掩膜不透明度", found: (n) => `找到 ${n} 个`, nothing: "没有找到任何对象。",
    takes: { text: "文字", image: "图片", audio: "声音", volume: "体数据", row: "表格行", tensors: "张量", texts: "文字、图片、声音", atoms: "原子", label: "类别" },
    gives: { classes: "类别", values: "数值", boxes: "边框", mask: "掩膜", text: "文字", tokens: "词元", vectors: "向量", energies: "能量", image: "图片", tensors: "张量" },
    textModel: "语言模型",
    energy: "能量", download: "下载",
    throughput: "吞吐量", latency: "延迟", queue: "队列", memory: "内存", tokens: "词元", batch: "批大小", speech: "实时语音", streams: "个流", realTime: "实时率",
    perSecond: "请求/秒", refusedRate: "失败/秒", limitedRate: "超限/秒", ms: "毫秒", waitingNow: "等待", activeNow: "运行", mb: "MB", tokensPerSecond: "词元/秒", rows: "行/次",
    lastMinutes: "5 分钟前", now: "现在", collecting: "正在收集……", models: "模型", state: "状态", answered: "已回答", waitingColumn: "等待", kindColumn: "类型",
    pause: "暂停", resume: "继续",
    dashboardHelp: "来自回答本页面的进程,每 2 秒更新;只保存在本标签页中。",
    states: { ready: "就绪", loading: "加载中", checking: "检查中", failed: "失败", unloading: "卸载中", unloaded: "已卸载" },
  },
};

let language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
const listeners = [];

/** The words of a name; a function where they need numbers. */
export const t = (name) => WORDS[language][name];

/** Have `listener` called after every change of language. */
export const onLanguage = (listener) => listeners.push(listener);

export function setWords(item) {
  if (item.dataset.text) item.textContent = t(item.dataset.text);
  if (item.dataset.label) item.setAttribute("aria-label", t(item.dataset.label));
  if (item.dataset.hint) item.placeholder = t(item.dataset.hint);
}

/** Put all words of the page in the language that is spoken. */
export function speak() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const item of document.querySelectorAll("[data-text], [data-label], [data-hint]")) setWords(item);
  const button = document.getElementById("language");
  button.textContent = t("other");
  button.lang = t("otherLang");
  for (const listener of listeners) listener();
}

export function switchLanguage() {
  language = t("otherLang");
  speak();
}
