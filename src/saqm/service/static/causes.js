// The causes that saqm.findings knows, in its words: what is measured, and what to do. A test holds the two together.
export const CAUSES = {
  "noise": {
    measured: "noise from pixel to pixel in the quietest windows",
    advice: "Noise hides faint detail: check dose, signal averages or gain, or denoise with care.",
  },
  "grain": {
    measured: "fine detail in the quietest windows",
    advice: "More grain than a normal-dose slice: check dose, slice thickness and kernel, and whether the window is narrower than usual.",
  },
  "over-smoothing": {
    measured: "fine detail in the quietest windows",
    advice: "Texture is missing that a slice of this kind has: lower the strength of the denoiser, or look at the slice before it.",
  },
  "blur": {
    measured: "fine over middle detail in the structured windows",
    advice: "Edges are soft: look for motion, focus, a soft kernel, or a picture that was enlarged.",
  },
  "low-contrast": {
    measured: "spread of the grey levels, 5th to 95th percentile",
    advice: "The picture uses few of the grey levels there are: take a narrower window, or check gain and exposure.",
  },
  "white-clipping": {
    measured: "judged pixels shown white",
    advice: "Bright areas are plain white, without detail: widen or raise the window, or check gain and exposure.",
  },
  "black-clipping": {
    measured: "judged pixels shown black",
    advice: "Dark areas are plain black, without detail: widen or lower the window, or check gain and exposure.",
  },
  "banding": {
    measured: "typical step between grey levels that occur",
    advice: "Too few grey levels: soft shading breaks into steps; go back to the file with its full bit depth.",
  },
  "blocking": {
    measured: "how much larger jumps are across a grid of 8x8 pixels than beside it",
    advice: "A grid of 8x8 pixels, the trace of lossy compression (JPEG, video): go back to the file before it, or compress less.",
  },
  "missing-content": {
    measured: "what should be judged but is one single value in rectangles, lines or bars",
    advice: "Part of the picture is empty: look for lost lines, a broken transfer, or areas painted over.",
  },
};
