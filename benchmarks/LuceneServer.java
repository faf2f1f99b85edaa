// Lucene as a retrieval server: EnglishAnalyzer, BM25, a bag of weighted terms, an index on the disk.
// java -cp anserini-fatjar.jar LuceneServer.java build corpus.jsonl index k1 b
// java -cp anserini-fatjar.jar LuceneServer.java time queries.json index k1 b topk    (one thread; prints JSON)
// java -cp anserini-fatjar.jar LuceneServer.java serve port index k1 b topk           (a thread for each core)
import com.fasterxml.jackson.databind.*;
import com.fasterxml.jackson.databind.node.*;
import com.sun.net.httpserver.*;
import java.io.*;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.Executors;
import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.en.EnglishAnalyzer;
import org.apache.lucene.analysis.tokenattributes.CharTermAttribute;
import org.apache.lucene.document.*;
import org.apache.lucene.index.*;
import org.apache.lucene.search.*;
import org.apache.lucene.search.similarities.BM25Similarity;
import org.apache.lucene.store.*;

public class LuceneServer {
  static final EnglishAnalyzer ANALYZER = new EnglishAnalyzer();
  static final ObjectMapper JSON = new ObjectMapper();

  public static void main(String[] args) throws Exception {
    BM25Similarity similarity = new BM25Similarity(Float.parseFloat(args[3]), Float.parseFloat(args[4]));
    Directory directory = FSDirectory.open(Paths.get(args[2]));
    if (args[0].equals("build")) {
      build(args[1], directory, similarity);
      return;
    }
    IndexSearcher searcher = new IndexSearcher(DirectoryReader.open(directory));
    searcher.setSimilarity(similarity);
    int topk = Integer.parseInt(args[5]);
    if (args[0].equals("time")) time(args[1], searcher, topk);
    else serve(Integer.parseInt(args[1]), searcher, topk);
  }

  static void build(String corpus, Directory directory, BM25Similarity similarity) throws Exception {
    IndexWriterConfig config = new IndexWriterConfig(ANALYZER).setSimilarity(similarity);
    config.setMergePolicy(new LogDocMergePolicy());  // keeps the order of documents: their numbers are rows
    IndexWriter writer = new IndexWriter(directory, config);
    try (BufferedReader lines = Files.newBufferedReader(Paths.get(corpus))) {
      for (String line; (line = lines.readLine()) != null; ) {
        Document passage = new Document();
        passage.add(new TextField("contents", JSON.readTree(line).get("contents").asText(), Field.Store.NO));
        writer.addDocument(passage);
      }
    }
    writer.forceMerge(1);
    writer.close();
  }

  static ScoreDoc[] search(IndexSearcher searcher, String text, int topk) throws IOException {
    Map<String, Integer> terms = new LinkedHashMap<>();
    try (TokenStream stream = ANALYZER.tokenStream("contents", text)) {
      CharTermAttribute term = stream.addAttribute(CharTermAttribute.class);
      stream.reset();
      while (stream.incrementToken()) terms.merge(term.toString(), 1, Integer::sum);
      stream.end();
    }
    BooleanQuery.Builder query = new BooleanQuery.Builder();
    terms.forEach((term, weight) -> query.add(
        new BoostQuery(new TermQuery(new Term("contents", term)), weight), BooleanClause.Occur.SHOULD));
    return searcher.search(query.build(), topk).scoreDocs;
  }

  static void time(String file, IndexSearcher searcher, int topk) throws Exception {
    String[] queries = JSON.readValue(new File(file), String[].class);
    double[] ms = new double[queries.length];
    ArrayNode hits = JSON.createArrayNode();
    for (int round = 0; round < 4; round++)  // the last one counts: the others compile the search
      for (int at = 0; at < queries.length; at++) {
        long begin = System.nanoTime();
        ScoreDoc[] found = search(searcher, queries[at], topk);
        ms[at] = (System.nanoTime() - begin) / 1e6;
        if (round == 0) {
          ArrayNode rows = hits.addArray();
          for (ScoreDoc hit : found) rows.add(hit.doc);
        }
      }
    ObjectNode result = JSON.createObjectNode();
    ArrayNode times = result.putArray("ms");
    for (double one : ms) times.add(one);
    result.set("hits", hits);
    System.out.println(result);
  }

  static void serve(int port, IndexSearcher searcher, int topk) throws Exception {
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 256);
    server.setExecutor(Executors.newFixedThreadPool(Runtime.getRuntime().availableProcessors()));
    server.createContext("/retrieve", exchange -> {
      String query = JSON.readTree(exchange.getRequestBody()).get("queries").get(0).asText();
      ArrayNode list = JSON.createArrayNode();
      for (ScoreDoc hit : search(searcher, query, topk)) {
        ObjectNode one = list.addObject();
        one.putObject("document").put("id", Integer.toString(hit.doc));
        one.put("score", hit.score);
      }
      ObjectNode answer = JSON.createObjectNode();
      answer.putArray("result").add(list);
      byte[] body = JSON.writeValueAsBytes(answer);
      exchange.getResponseHeaders().set("Content-Type", "application/json");
      exchange.sendResponseHeaders(200, body.length);
      try (OutputStream out = exchange.getResponseBody()) { out.write(body); }
    });
    server.createContext("/readyz", exchange -> { exchange.sendResponseHeaders(200, -1); exchange.close(); });
    server.start();
  }
}
