// Principal components of a few long vectors, from their products with each other: as many rows as texts, not as numbers.

const MAX_ITERATIONS = 5000;
const CLOSE_ENOUGH = 1e-8;

/** How alike two vectors are, -1 to 1. */
export function cosine(a, b) {
  return dot(a, b) / (Math.sqrt(dot(a, a) * dot(b, b)) || 1);
}

/** Each vector's place on the two directions in which they differ most. */
export function project(vectors) {
  const products = vectors.map((a) => vectors.map((b) => dot(a, b)));
  const size = vectors.length;
  const means = products.map((row) => row.reduce((sum, each) => sum + each, 0) / size);
  const mean = means.reduce((sum, each) => sum + each, 0) / size;
  const centred = products.map((row, i) => row.map((each, j) => each - means[i] - means[j] + mean));
  const first = leading(centred);
  const rest = centred.map((row, i) => row.map((each, j) => each - first.value * first.vector[i] * first.vector[j]));
  const second = leading(rest);
  const along = ({ value, vector }) => vector.map((each) => each * Math.sqrt(Math.max(0, value)));
  const [xs, ys] = [along(first), along(second)];
  return xs.map((x, index) => [x, ys[index]]);
}

/** The leading eigenvector of a symmetric matrix, by power iteration from a fixed start: the same map each time. */
function leading(matrix) {
  let vector = matrix.map((_, index) => Math.sin(1 + 2.4 * index));
  let value = 0;
  for (let turn = 0; turn < MAX_ITERATIONS; turn += 1) {
    const next = matrix.map((row) => dot(row, vector));
    value = Math.sqrt(dot(next, next));
    if (value < 1e-12) return { value: 0, vector };
    const before = vector;
    vector = next.map((each) => each / value);
    if (vector.every((each, index) => Math.abs(each - before[index]) < CLOSE_ENOUGH)) break;
  }
  return { value, vector };
}

function dot(a, b) {
  let sum = 0;
  for (let index = 0; index < a.length; index += 1) sum += a[index] * b[index];
  return sum;
}
