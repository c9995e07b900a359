// Colours for TeX source. Not a parser: one regular expression tells the few kinds of tokens apart that help the eye.

const tokens = new RegExp([
  "(?<comment>%.*)",
  "(?<structure>\\\\(?:begin|end|documentclass|usepackage|usetikzlibrary)(?![a-zA-Z]))",
  "(?<command>\\\\(?:[a-zA-Z]+\\*?|.))",
  "(?<number>(?<![a-zA-Z])-?\\d*\\.?\\d+(?:(?:cm|mm|pt|em|ex|in)(?![a-zA-Z]))?)",
  "(?<bracket>[{}\\[\\]$&^_])",
].join("|"), "g");

// A line of source as [{kind, text}, ...]; kind is "" for what gets no colour. The texts together are the line.
export function highlight(line) {
  const parts = [];
  let end = 0;
  for (const match of line.matchAll(tokens)) {
    if (match.index > end) parts.push({ kind: "", text: line.slice(end, match.index) });
    const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    parts.push({ kind, text: match[0] });
    end = match.index + match[0].length;
  }
  if (end < line.length) parts.push({ kind: "", text: line.slice(end) });
  return parts;
}
