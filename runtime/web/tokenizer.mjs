// Prompts to token ids with the bundle's own tokenizer file.

import { Tokenizer as Rules } from "@huggingface/tokenizers";

/** A tokenizer.json with fixed length: right padding, truncation inside the end token. */
export class Tokenizer {
  #rules;
  #length;
  #padId;

  /**
   * @param {object} rules content of a file of the `tokenizers` library
   * @param {number} length tokens a prompt becomes
   * @param {number} padId what fills the rest
   */
  constructor(rules, length, padId) {
    this.#rules = new Rules(rules, {});
    this.#length = length;
    this.#padId = padId;
  }

  /** Token ids of a prompt, `length` of them, and 1 where they are no padding. */
  encode(prompt) {
    const whole = this.#rules.encode(prompt).ids;
    const ids = new BigInt64Array(this.#length).fill(BigInt(this.#padId));
    const kept = whole.length > this.#length ? this.#truncate(prompt, whole) : whole;
    kept.forEach((id, i) => (ids[i] = BigInt(id)));
    return { ids, mask: new BigInt64Array(this.#length).fill(1n, 0, kept.length) };
  }

  /** Drop the text's last tokens, not the special ones behind them. */
  #truncate(prompt, whole) {
    const plain = this.#rules.encode(prompt, { add_special_tokens: false }).ids;
    const special = whole.length - plain.length;
    let before = 0;
    while (plain.some((id, i) => whole[before + i] !== id)) before++;
    const behind = whole.slice(before + plain.length);
    return [...whole.slice(0, before), ...plain.slice(0, this.#length - special), ...behind];
  }
}
